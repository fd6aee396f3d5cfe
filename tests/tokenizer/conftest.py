"""One tiny tokenizer of each kind, loaded once."""

import pytest

from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer
from support.texts import TEXTS
from support.tokenizers import (
    train_byte_level_bpe,
    train_sentencepiece,
    write_byte_level_bpe,
    write_gguf_byte_level_bpe,
    write_gguf_sentencepiece,
    write_sentencepiece,
)

VOCAB_SIZE = 700
KINDS = ("sentencepiece-bpe", "sentencepiece-unigram", "tokenizer.json", "gguf-llama", "gguf-gpt2")


@pytest.fixture(scope="session")
def tiny_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    paths = (
        write_sentencepiece(folder / "bpe", VOCAB_SIZE),
        write_sentencepiece(folder / "unigram", VOCAB_SIZE, model_type="unigram"),
        write_byte_level_bpe(folder / "byte-level", VOCAB_SIZE),
        write_gguf_sentencepiece(folder / "sentencepiece.gguf", train_sentencepiece(VOCAB_SIZE)),
        write_gguf_byte_level_bpe(folder / "byte-level.gguf", train_byte_level_bpe(VOCAB_SIZE), pre="gpt-2"),
    )
    return {kind: load_tokenizer(path) for kind, path in zip(KINDS, paths, strict=True)}


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    """Each kind in turn."""
    return tiny_tokenizers[request.param]


@pytest.fixture(params=sorted(TEXTS))
def text(request: pytest.FixtureRequest) -> str:
    """Each text in turn."""
    return TEXTS[request.param]
