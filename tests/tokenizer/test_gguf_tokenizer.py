"""Tokenizers inside GGUF files give the ids of the tokenizers they were made from."""

from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from gguf import GGUFWriter
from tokenizers import Regex, normalizers, pre_tokenizers

from polyserve.errors import ModelLoadError
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer
from support.tokenizers import (
    train_byte_level_bpe,
    train_sentencepiece,
    write_gguf_byte_level_bpe,
    write_gguf_sentencepiece,
)

# How the families' own tokenizer.json files cut words, written down again.
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
ORIGINALS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "default": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "bloom": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" ?[^(\\s|[.,!?…。，、।۔،])]+"), behavior="isolated"), BYTES]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(
                    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
                    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
                ),
                behavior="isolated",
            ),
            BYTES,
        ]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(
                    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
                    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
                ),
                behavior="isolated",
            ),
            BYTES,
        ]
    ),
}


@pytest.fixture(scope="module")
def originals() -> dict[str, tokenizers.Tokenizer]:
    """A tokenizer trained with each way of cutting words."""
    trained = {}
    for pre, cutting in ORIGINALS.items():
        library = train_byte_level_bpe(900, pre_tokenizer=cutting)
        if pre == "qwen2":
            library.normalizer = normalizers.NFC()
        trained[pre] = library
    return trained


@pytest.fixture(scope="module")
def read_back(
    originals: dict[str, tokenizers.Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("gguf")
    files = {pre: write_gguf_byte_level_bpe(folder / pre, original, pre=pre) for pre, original in originals.items()}
    return {pre: load_tokenizer(file) for pre, file in files.items()}


@pytest.mark.parametrize("pre", ORIGINALS)
def test_byte_level_ids_are_those_of_the_original(
    originals: dict[str, tokenizers.Tokenizer], read_back: dict[str, Tokenizer], pre: str, text: str
) -> None:
    assert read_back[pre].encode(text, add_special_tokens=False) == originals[pre].encode(text).ids


def test_the_ways_of_cutting_words_differ(read_back: dict[str, Tokenizer]) -> None:
    text = "12345 it's (foo)\n\n  bar.Nîmes"
    cut = {pre: tuple(tokenizer.encode(text, add_special_tokens=False)) for pre, tokenizer in read_back.items()}
    assert len(set(cut.values())) == len(ORIGINALS) - 1  # default is gpt-2


def test_llama_3_takes_a_word_that_is_a_token_whole(tmp_path: Path) -> None:
    library = train_byte_level_bpe(300)
    path = write_gguf_byte_level_bpe(tmp_path / "a.gguf", library, pre="llama-bpe", more_tokens=["xyz"])
    assert load_tokenizer(path).encode("xyz", add_special_tokens=False) == [300]
    path = write_gguf_byte_level_bpe(tmp_path / "b.gguf", library, pre="gpt-2", more_tokens=["xyz"])
    assert len(load_tokenizer(path).encode("xyz", add_special_tokens=False)) == 3


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", True), ("gpt-2", False)])
def test_bos_is_added_as_the_file_says_and_otherwise_as_the_family_does(
    tmp_path: Path, pre: str, expected: bool
) -> None:
    library = train_byte_level_bpe(300)
    assert load_tokenizer(write_gguf_byte_level_bpe(tmp_path / "a", library, pre=pre)).adds_bos == expected
    for said in (True, False):
        metadata = {"tokenizer.ggml.add_bos_token": said}
        path = write_gguf_byte_level_bpe(tmp_path / "b", library, pre=pre, metadata=metadata)
        assert load_tokenizer(path).adds_bos == said


def test_an_unknown_way_of_cutting_words_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf_byte_level_bpe(tmp_path / "a", train_byte_level_bpe(300), pre="viking")
    with pytest.raises(ModelLoadError, match="'viking' is not supported; default, gpt-2, smollm"):
        load_tokenizer(path)


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_sentencepiece_ids_are_those_of_the_original(tmp_path: Path, text: str, dummy_prefix: bool) -> None:
    model = train_sentencepiece(700, dummy_prefix=dummy_prefix, user_defined=("\n\n", "▁▁▁", "<tag>"))
    metadata = {"tokenizer.ggml.add_space_prefix": dummy_prefix}
    tokenizer = load_tokenizer(write_gguf_sentencepiece(tmp_path / "a.gguf", model, metadata=metadata))
    original = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokenizer.encode(text, add_special_tokens=False) == original.encode(text, out_type=int)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_user_defined_pieces_are_tokens_and_not_special(tmp_path: Path) -> None:
    model = train_sentencepiece(700, user_defined=("▁▁", "<tag>"))
    tokenizer = load_tokenizer(write_gguf_sentencepiece(tmp_path / "a.gguf", model))
    assert [tokenizer.token_bytes(i) for i in (3, 4)] == [b"  ", b"<tag>"]
    assert {3, 4} <= set(tokenizer.encode("a  b<tag>"))
    assert tokenizer.decode(tokenizer.encode("a  b<tag>")) == "a  b<tag>"


def test_a_sentencepiece_tokenizer_adds_bos_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    model = train_sentencepiece(600)
    assert load_tokenizer(write_gguf_sentencepiece(tmp_path / "a", model)).adds_bos
    path = write_gguf_sentencepiece(tmp_path / "b", model, metadata={"tokenizer.ggml.add_bos_token": False})
    assert not load_tokenizer(path).adds_bos


def test_ends_of_turn_and_message_end_answers_too(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 8}
    path = write_gguf_byte_level_bpe(tmp_path / "a", train_byte_level_bpe(300), pre="gpt-2", metadata=metadata)
    tokenizer = load_tokenizer(path)
    assert (tokenizer.eos_id, tokenizer.eos_ids) == (2, (2, 7, 8))
    assert tokenizer.special_ids == {0, 1, 2, 7, 8}


def test_the_chat_template_of_the_file_is_used(tmp_path: Path) -> None:
    metadata = {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    path = write_gguf_byte_level_bpe(tmp_path / "a", train_byte_level_bpe(300), pre="gpt-2", metadata=metadata)
    assert load_tokenizer(path).render_chat([{"role": "user", "content": "hi"}]) == "<s>hi"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "t5"}, "kind 't5' is not supported"),
        ({"model": None}, "tokenizer.ggml.model must be a str, got nothing"),
        ({"tokens": None}, "tokenizer.ggml.tokens must be an array of strings, got nothing"),
        ({"tokens": ["a", "a", "b"]}, "holds a token twice"),
        ({"merges": None}, "tokenizer.ggml.merges must be an array of strings"),
        ({"merges": ["a zz"]}, "merges do not fit its tokens"),
        ({"merges": ["a z\nz"]}, r"merges do not fit its tokens: .*z\\nz"),
        ({"kinds": [1, 1]}, "token_type must be an array of 3 numbers, got 2 of them"),
        ({"eos": 3}, "tokenizer.ggml.eos_token_id is 3, and there are 3 tokens"),
    ],
)
def test_damaged_byte_level_metadata_is_named(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    path = write_parts(tmp_path, {"model": "gpt2", "tokens": ["a", "b", "ab"], "merges": ["a b"]} | changes)
    with pytest.raises(ModelLoadError, match=expected) as caught:
        load_tokenizer(path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scores": None}, "tokenizer.ggml.scores must be an array of 3 numbers, got nothing"),
        ({"scores": [0.0]}, "tokenizer.ggml.scores must be an array of 3 numbers, got 1 of them"),
        ({"kinds": [1, 1, 1]}, "no unknown token"),
        ({"tokens": ["<unk>", "a", "a"]}, "damaged, or not a SentencePiece model: .*a is already defined"),
        ({"tokens": ["<unk>", "a", ""]}, "piece must not be empty"),
    ],
)
def test_damaged_sentencepiece_metadata_is_named(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    parts = {"model": "llama", "tokens": ["<unk>", "a", "b"], "scores": [0.0, -1.0, -2.0], "kinds": [2, 1, 1]}
    path = write_parts(tmp_path, parts | changes)
    with pytest.raises(ModelLoadError, match=expected) as caught:
        load_tokenizer(path)
    assert "\n" not in caught.value.message


def test_a_smallest_sentencepiece_vocabulary_works(tmp_path: Path) -> None:
    parts = {"model": "llama", "tokens": ["<unk>", "a", "ab", "b"], "scores": [0.0, -2.0, -1.0, -3.0]}
    tokenizer = load_tokenizer(write_parts(tmp_path, parts | {"kinds": [2, 1, 1, 1]}))
    assert tokenizer.encode("ab")[-1] == 2


def write_parts(folder: Path, parts: dict[str, object]) -> Path:
    """A GGUF file with these tokenizer entries; those that are None are left out."""
    writer = GGUFWriter(folder / "a.gguf", "llama")
    names = {"model": "model", "tokens": "tokens", "merges": "merges", "scores": "scores", "kinds": "token_type"}
    for part, value in parts.items():
        if isinstance(value, str):
            writer.add_string(f"tokenizer.ggml.{names[part]}", value)
        elif isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{names[part]}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{part}_token_id", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "a.gguf"
