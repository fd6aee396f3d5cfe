"""Text in PolyLM's languages, a tokenizer that was trained on it, and the text in shards."""

from pathlib import Path

import pytest

from polyserve_training.config import TokenizeOptions, TokenizerOptions
from polyserve_training.data.tokenize import tokenize
from polyserve_training.tokenizer import train_tokenizer
from support.training_runs import VOCAB_SIZE, write_texts


@pytest.fixture(scope="session")
def texts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def tokenizer_folder(texts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer([texts_folder], folder, TokenizerOptions(vocab_size=VOCAB_SIZE, threads=1))
    return folder


@pytest.fixture(scope="session")
def data_folder(texts_folder: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "data"
    tokenize([texts_folder], tokenizer_folder, folder, TokenizeOptions(shard_tokens=2000))
    return folder
