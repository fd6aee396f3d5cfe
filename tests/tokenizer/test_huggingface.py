"""tokenizer.json: ids equal the library's own, files beside it are followed, and decoders are known or refused."""

import json
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from polyserve.errors import ModelLoadError
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer
from support.texts import LANGUAGES
from support.tokenizers import train_byte_level_bpe, write_byte_level_bpe


def folder_with(folder: Path, library: tokenizers.Tokenizer, **config: object) -> Path:
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"} | config))
    return folder


def llama_style(decoder: decoders.Decoder) -> tokenizers.Tokenizer:
    """A vocabulary with ▁ for spaces and byte fallback, as Llama 2 and Gemma have it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "é"]
    library = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.decoder = decoder
    return library


LLAMA_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def test_ids_are_those_of_the_library(tiny_tokenizers: dict[str, Tokenizer], text: str) -> None:
    assert tiny_tokenizers["tokenizer.json"].encode(text) == train_byte_level_bpe(700).encode(text).ids


def test_the_files_own_post_processor_adds_bos(tmp_path: Path) -> None:
    library = train_byte_level_bpe(400)
    library.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = load_tokenizer(folder_with(tmp_path, library))
    assert tokenizer.adds_bos
    assert tokenizer.encode("x") == [1, *tokenizer.encode("x", add_special_tokens=False)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"add_bos_token": True}, ([1], [])),
        ({"add_eos_token": True}, ([], [2])),
        ({"add_bos_token": True, "add_eos_token": True}, ([1], [2])),
        ({"add_bos_token": False}, ([], [])),
    ],
)
def test_the_configuration_goes_before_the_post_processor(
    tmp_path: Path, config: dict[str, object], expected: tuple[list[int], list[int]]
) -> None:
    library = train_byte_level_bpe(400)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="</s> $A <s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = load_tokenizer(folder_with(tmp_path, library, **config))
    before, after = expected
    assert tokenizer.encode("xy") == [*before, *tokenizer.encode("xy", add_special_tokens=False), *after]
    assert tokenizer.adds_bos == bool(before)


def test_truncation_and_padding_of_a_file_are_switched_off(tmp_path: Path) -> None:
    library = train_byte_level_bpe(400)
    library.enable_truncation(max_length=4)
    library.enable_padding(length=64)
    tokenizer = load_tokenizer(folder_with(tmp_path, library))
    assert tokenizer.decode(tokenizer.encode(LANGUAGES["de"])) == LANGUAGES["de"]
    assert 4 < len(tokenizer.encode(LANGUAGES["de"])) != 64


def test_a_replace_bytefallback_fuse_decoder_is_understood(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_with(tmp_path, llama_style(decoders.Sequence(LLAMA_DECODER))))
    for text in ("a a", " a", "aé", "b日本 a", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes(3 + 0xE6) == b"\xe6"


def test_a_decoder_without_strip_keeps_the_first_space(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_with(tmp_path, llama_style(decoders.Sequence(LLAMA_DECODER[:-1]))))
    assert tokenizer.decode(tokenizer.encode("a")) == " a"


@pytest.mark.parametrize(("scheme", "expected"), [("always", "a b"), ("first", "a b"), ("never", " a b")])
def test_metaspace_takes_away_the_space_it_puts_before_a_text(tmp_path: Path, scheme: str, expected: str) -> None:
    library = llama_style(decoders.Metaspace(prepend_scheme=scheme))
    tokenizer = load_tokenizer(folder_with(tmp_path, library))
    assert tokenizer.decode(tokenizer.encode("a b")) == expected


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        (decoders.WordPiece(), "WordPiece"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.CTC(), "CTC"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")]), "Replace"),
        (decoders.Replace(tokenizers.Regex("▁+"), " "), "Replace"),
        (None, "without a decoder"),
    ],
)
def test_a_decoder_that_is_not_understood_is_refused_by_name(
    tmp_path: Path, decoder: decoders.Decoder | None, expected: str
) -> None:
    library = train_byte_level_bpe(300)
    library.decoder = decoder
    with pytest.raises(ModelLoadError, match=expected):
        load_tokenizer(folder_with(tmp_path, library))


def test_added_tokens_are_their_own_text_even_outside_the_byte_alphabet(tmp_path: Path) -> None:
    library = train_byte_level_bpe(300)
    library.add_tokens(["<été>", "  \n  "])
    library.add_special_tokens(["<|ประเทศ|>"])
    tokenizer = load_tokenizer(folder_with(tmp_path, library))
    assert tokenizer.vocab_size == 303
    assert [tokenizer.token_bytes(i).decode() for i in (300, 301, 302)] == ["<été>", "  \n  ", "<|ประเทศ|>"]
    assert tokenizer.special_ids == {0, 1, 2, 302}
    text = "a  \n  b<été><|ประเทศ|>"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_several_end_ids_come_from_the_generation_configuration(tmp_path: Path) -> None:
    library = train_byte_level_bpe(300)
    library.add_special_tokens(["<|eot|>"])
    folder = folder_with(tmp_path, library)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [300, 2, 77]}))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_id, tokenizer.eos_ids) == (2, (2, 300))  # 77 is a token of text


def test_ids_of_the_model_configuration_are_enough_without_tokenizer_files(tmp_path: Path) -> None:
    train_byte_level_bpe(300).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_a_token_that_only_the_configuration_knows_is_named(tmp_path: Path) -> None:
    added = {"300": {"content": "<|new|>", "special": True}}
    with pytest.raises(ModelLoadError, match=r"lacks the added token '<\|new\|>', id 300"):
        load_tokenizer(folder_with(tmp_path, train_byte_level_bpe(300), added_tokens_decoder=added))


def test_a_long_text_does_not_hold_up_other_threads(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_byte_level_bpe(tmp_path, 700))
    long_text = "".join(LANGUAGES.values())
    long_text *= 600_000 // len(long_text)
    ticks, done = [time.perf_counter()], threading.Event()

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    start = time.perf_counter()
    tokenizer.encode(long_text)
    took = time.perf_counter() - start
    done.set()
    ticker.join()
    assert max(after - before for before, after in pairwise(ticks)) < 0.6 * took


def test_a_cut_file_is_refused_with_one_line(tmp_path: Path) -> None:
    train_byte_level_bpe(300).save(str(tmp_path / "tokenizer.json"))
    content = (tmp_path / "tokenizer.json").read_bytes()
    for length in range(0, len(content) - 1, len(content) // 30):
        (tmp_path / "tokenizer.json").write_bytes(content[:length])
        with pytest.raises(ModelLoadError, match=r"tokenizer\.json: damaged, or not a tokenizer") as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"[]", b"null", b'{"model": {"type": "Nothing"}}', b"\xff\xfe{}"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json: damaged, or not a tokenizer"):
        load_tokenizer(tmp_path)
