"""What goes into shards comes out of them, a document at a time or from anywhere to anywhere, and damage is named."""

from pathlib import Path

import numpy as np
import pytest

from polyserve.errors import TrainingError
from polyserve.tokenizer.load import load_tokenizer
from polyserve_training.config import TokenizeOptions
from polyserve_training.data.shards import Dataset, DatasetWriter, open_dataset
from polyserve_training.data.tokenize import tokenize

DOCUMENTS = [list(range(start, start + length)) for start, length in ((0, 5), (100, 1), (200, 9), (300, 4), (400, 7))]


def write(folder: Path, *, vocab_size: int = 500, shard_tokens: int = 6) -> Dataset:
    with DatasetWriter(folder, tokenizer_sha256="t", vocab_size=vocab_size, shard_tokens=shard_tokens) as writer:
        for document in DOCUMENTS:
            writer.append("de", document, num_bytes=10)
        writer.finish()
    return open_dataset(folder)


@pytest.mark.parametrize("vocab_size", [500, 256_000])
@pytest.mark.parametrize("shard_tokens", [1, 6, 1000])
def test_any_span_of_a_stream_can_be_read(shard_tokens, vocab_size, tmp_path):
    stream = write(tmp_path / "data", vocab_size=vocab_size, shard_tokens=shard_tokens).streams["de"]
    whole = [token for document in DOCUMENTS for token in document]
    begins = np.cumsum([0, *map(len, DOCUMENTS)])
    for start in range(len(whole)):
        for stop in range(start + 1, len(whole) + 1):
            tokens, starts = stream.read(start, stop)
            assert tokens.tolist() == whole[start:stop]
            assert starts.tolist() == [begin - start for begin in begins if start < begin <= stop]


def test_the_index_counts(tmp_path):
    entry = write(tmp_path / "data").index.streams["de"]
    assert (entry.num_tokens, entry.num_documents, entry.num_bytes, len(entry.shards)) == (26, 5, 50, 3)


@pytest.mark.parametrize("name", ["de-00000.tokens", "de-00001.starts"])
def test_a_changed_byte_is_found(name, tmp_path):
    write(tmp_path / "data")
    path = tmp_path / "data" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    open_dataset(tmp_path / "data", verify="size")
    with pytest.raises(TrainingError, match=rf"{name}: its fingerprint has changed"):
        open_dataset(tmp_path / "data")


@pytest.mark.parametrize("verify", ["full", "size"])
def test_a_truncated_file_is_found(verify, tmp_path):
    write(tmp_path / "data")
    path = tmp_path / "data/de-00001.tokens"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(TrainingError, match=r"de-00001.tokens: must have 18 bytes, got 16"):
        open_dataset(tmp_path / "data", verify=verify)


def test_what_is_no_data_set_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"index.json: cannot be read: No such file"):
        open_dataset(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 2}')
    with pytest.raises(TrainingError, match=r"index.json: not an index of tokens"):
        open_dataset(tmp_path)


def test_a_folder_that_was_not_finished_is_replaced(tmp_path):
    with DatasetWriter(tmp_path / "data", tokenizer_sha256="t", vocab_size=9, shard_tokens=9) as unfinished:
        unfinished.append("xx", [1, 2], num_bytes=2)
    assert not (tmp_path / "data").exists()
    assert list(write(tmp_path / "data").streams) == ["de"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_finished_folder_is_not_overwritten(tmp_path):
    write(tmp_path / "data")
    with pytest.raises(TrainingError, match="data: exists already"):
        write(tmp_path / "data")


@pytest.mark.parametrize("threads", [1, 3])
def test_documents_become_streams_by_language_whatever_the_threads(threads, texts_folder, tokenizer_folder, tmp_path):
    options = TokenizeOptions(threads=threads, shard_tokens=500)
    index = tokenize([texts_folder], tokenizer_folder, tmp_path / "data", options)
    tokenizer = load_tokenizer(tokenizer_folder)
    assert len(index.streams) == 18
    stream = open_dataset(tmp_path / "data").streams["ko"]
    tokens, _ = stream.read(0, stream.num_tokens)
    documents = "".join(tokenizer.decode(tokens.tolist(), skip_special_tokens=False)).split("</s>")
    assert documents == [*(texts_folder / "ko.txt").read_text().rstrip("\n").split("\n\n"), ""]


def test_a_document_cannot_end_itself(tokenizer_folder, tmp_path):
    (tmp_path / "en.txt").write_text("a </s> b <s> c")
    index = tokenize([tmp_path / "en.txt"], tokenizer_folder, tmp_path / "data", TokenizeOptions())
    assert index.streams["en"].num_documents == 1
    tokens, _ = open_dataset(tmp_path / "data").streams["en"].read(0, index.streams["en"].num_tokens)
    assert [place for place, token in enumerate(tokens) if token in (0, 1, 2)] == [len(tokens) - 1]
