"""SentencePiece models, as PolyLM has one: ids equal the library's own, and what its configuration says is followed."""

import json
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from polyserve.errors import ModelLoadError
from polyserve.tokenizer.load import load_tokenizer
from polyserve.tokenizer.sentencepiece import SentencePieceTokenizer
from support.tokenizers import POLYLM_CONFIG, TRAINING_TEXTS, train_sentencepiece, write_sentencepiece


def load(folder: Path) -> SentencePieceTokenizer:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


def folder_with(folder: Path, **changes: object) -> Path:
    """A PolyLM folder whose tokenizer_config.json says something else."""
    return write_sentencepiece(folder, 600, config=POLYLM_CONFIG | changes)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_ids_are_those_of_the_library(tmp_path: Path, text: str, model_type: str) -> None:
    folder = write_sentencepiece(tmp_path, 600, model_type=model_type)
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert load(folder).encode(text) == library.encode(text, out_type=int)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_model_type_is_read_and_not_assumed(tmp_path: Path, model_type: str) -> None:
    assert load(write_sentencepiece(tmp_path, 600, model_type=model_type)).model_type == model_type


def test_no_bos_is_added_for_polylm_whatever_its_configuration_leaves_out(tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, 600, config={})
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert not load(folder).adds_bos


def test_bos_is_added_for_llama_unless_its_configuration_says_otherwise(tmp_path: Path) -> None:
    silent = write_sentencepiece(tmp_path / "silent", 600, config={})
    told = folder_with(tmp_path / "told", add_bos_token=False)
    for folder in (silent, told):
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert load(silent).encode("x")[0] == 1
    assert not load(told).adds_bos


def test_bos_and_eos_go_around_a_text_when_asked_for(tmp_path: Path) -> None:
    tokenizer = load(folder_with(tmp_path, add_bos_token=True, add_eos_token=True))
    plain = tokenizer.encode("Wien", add_special_tokens=False)
    assert tokenizer.encode("Wien") == [1, *plain, 2]


def test_the_space_before_a_text_comes_once_and_not_after_a_special_token(tmp_path: Path) -> None:
    tokenizer = load(folder_with(tmp_path))
    first, second = tokenizer.encode("die</s>die")[0], tokenizer.encode("die</s>die")[-1]
    assert tokenizer.token_bytes(first).startswith(b" ")
    assert not tokenizer.token_bytes(second).startswith(b" ")
    assert not tokenizer.token_bytes(tokenizer.encode("</s>die")[1]).startswith(b" ")


def test_add_prefix_space_goes_before_what_the_model_says(tmp_path: Path) -> None:
    tokenizer = load(folder_with(tmp_path, add_prefix_space=False))
    assert b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode("die")) == b"die"
    assert tokenizer.decode(tokenizer.encode(" die")) == " die"


def test_wrong_end_ids_of_early_polylm_configurations_are_not_believed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "bos_token_id": 599, "eos_token_id": 599, "vocab_size": 600})
    )
    tokenizer = load(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (1, 2, (2,))


def test_special_tokens_come_from_the_model_if_no_file_names_them(tmp_path: Path) -> None:
    tokenizer = load(write_sentencepiece(tmp_path, 600, config={}))
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)


def test_tokens_added_behind_the_vocabulary_are_found_in_text_and_have_their_own_bytes(tmp_path: Path) -> None:
    added = {
        "600": {"content": "<|user|>", "special": True},
        "602": {"content": "<think>", "special": False, "lstrip": True, "rstrip": True},
    }
    tokenizer = load(folder_with(tmp_path, added_tokens_decoder=added))
    assert tokenizer.vocab_size == 603
    assert [tokenizer.token_bytes(i) for i in (600, 601, 602)] == [b"<|user|>", b"", b"<think>"]
    assert tokenizer.special_ids == {0, 1, 2, 600}
    ids = tokenizer.encode("<|user|>a \n <think>  b")
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|user|>a<think>b"
    assert tokenizer.decode(ids) == "a<think>b"


def test_an_end_of_turn_token_of_the_generation_configuration_ends_answers_too(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, added_tokens_decoder={"600": {"content": "<|end|>", "special": True}})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 600]}))
    assert load(folder).eos_ids == (2, 600)


def test_a_long_text_does_not_hold_up_other_threads(tmp_path: Path) -> None:
    tokenizer = load(folder_with(tmp_path))
    long_text = " ".join(TRAINING_TEXTS)
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


@pytest.mark.parametrize("content", [b"", b"not a protocol buffer", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.model: damaged, or not a SentencePiece model"):
        load_tokenizer(tmp_path)


def test_a_cut_file_is_refused_with_one_line(tmp_path: Path) -> None:
    content = train_sentencepiece(600)
    for length in range(1, len(content), len(content) // 40):
        (tmp_path / "tokenizer.model").write_bytes(content[:length])
        with pytest.raises(ModelLoadError) as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("spec", "field", "value", "expected"),
    [
        ("trainer_spec", "treat_whitespace_as_suffix", True, "treat_whitespace_as_suffix"),
        ("normalizer_spec", "escape_whitespaces", False, "escape_whitespaces = false"),
        ("denormalizer_spec", "precompiled_charsmap", b"x", "a denormalizer"),
    ],
)
def test_what_changes_the_meaning_of_pieces_is_refused_by_name(
    tmp_path: Path, spec: str, field: str, value: object, expected: str
) -> None:
    proto = sentencepiece_model_pb2.ModelProto.FromString(train_sentencepiece(600))
    setattr(getattr(proto, spec), field, value)
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelLoadError, match=expected):
        load_tokenizer(tmp_path)


def test_a_class_that_shifts_ids_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="XLMRobertaTokenizer"):
        load_tokenizer(folder_with(tmp_path, tokenizer_class="XLMRobertaTokenizer"))


def test_an_end_token_that_the_vocabulary_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"lacks the eos_token '<\|nowhere\|>'"):
        load_tokenizer(folder_with(tmp_path, eos_token="<|nowhere|>"))
