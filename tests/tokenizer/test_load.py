"""Where a tokenizer is looked for, and what the JSON files beside it may hold."""

import json
from pathlib import Path

import pytest

from polyserve.errors import ModelLoadError
from polyserve.tokenizer.huggingface import HuggingFaceTokenizer
from polyserve.tokenizer.load import load_tokenizer
from polyserve.tokenizer.sentencepiece import SentencePieceTokenizer
from support.tokenizers import train_byte_level_bpe, write_byte_level_bpe, write_sentencepiece


def test_tokenizer_json_goes_before_tokenizer_model(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, 600)
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)
    write_byte_level_bpe(tmp_path, 300)
    assert isinstance(load_tokenizer(tmp_path), HuggingFaceTokenizer)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"neither tokenizer\.json nor tokenizer\.model") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in caught.value.message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such folder or file"):
        load_tokenizer(tmp_path / "none")


def test_special_tokens_map_is_read_where_tokenizer_config_is_silent(tmp_path: Path) -> None:
    folder = write_byte_level_bpe(tmp_path, 300, config={"eos_token": "</s>", "bos_token": None})
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "<unk>", "additional_special_tokens": ["a", "missing"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.encode("a", add_special_tokens=False)[0] in tokenizer.special_ids


def test_added_tokens_json_of_older_checkpoints_is_read(tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, 600)
    (folder / "added_tokens.json").write_text(json.dumps({"<|user|>": 600}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.token_text(600) == "<|user|>"
    assert 600 in tokenizer.encode("x<|user|>y")


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("tokenizer_config.json", "{", "damaged: not JSON"),
        ("tokenizer_config.json", "[1]", "must hold a JSON object, got list"),
        ("special_tokens_map.json", "x", "damaged: not JSON"),
        ("config.json", "[" * 100_000, "damaged: not JSON"),
        ("generation_config.json", "nul", "damaged: not JSON"),
        ("added_tokens.json", '{"<a>": "b"}', "'<a>' must have an id, got 'b'"),
        ("added_tokens.json", '{"<a>": -1}', "'<a>' must have an id, got -1"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder must be an object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}', "unusable entry 'x'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"7": {}}}', "unusable entry '7'"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"99999999": {"content": "a"}}}',
            "unusable entry '99999999'",
        ),
        ("added_tokens.json", '{"<a>": 99999999999}', "'<a>' must have an id, got 99999999999"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"7": {"content": "<a>", "single_word": true}}}',
            "single_word is not supported",
        ),
        ("tokenizer_config.json", '{"chat_template": 7}', "chat_template must be a text"),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "the chat template cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_with_one_line(tmp_path: Path, file: str, content: str, expected: str) -> None:
    folder = write_sentencepiece(tmp_path, 600)
    (folder / file).write_text(content)
    with pytest.raises(ModelLoadError, match=expected) as caught:
        load_tokenizer(folder)
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = write_sentencepiece(tmp_path, 600)
    (folder / "tokenizer_config.json").write_bytes(b'{"bos_token": "\xff"}')
    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json: damaged: not UTF-8"):
        load_tokenizer(folder)


def test_a_checkpoint_without_any_json_beside_it_loads(tmp_path: Path) -> None:
    train_byte_level_bpe(300).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids, tokenizer.pad_id) == (None, None, (), None)
    assert tokenizer.decode(tokenizer.encode("Zażółć")) == "Zażółć"
