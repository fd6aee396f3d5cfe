"""Documents come out of every kind of file as they went in, and a file that is not what its name says is named."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from polyserve.errors import TrainingError
from polyserve_training.data.documents import Document, find_files, read_documents

DOCUMENTS = [Document("one\n  two\tthree", "en"), Document("zwei", "de"), Document("三\n", "zh")]
LINES = "".join(json.dumps({"text": d.text, "language": d.language}) + "\n" for d in DOCUMENTS)


def read(path: Path, **options: str) -> list[Document]:
    return list(read_documents([path], **options))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_of_json_are_documents(suffix, tmp_path):
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"mixed.jsonl{suffix}"
    path.write_bytes(compress(LINES.encode()))
    assert read(path) == DOCUMENTS


def test_rows_of_parquet_are_documents(tmp_path):
    path = tmp_path / "rows.parquet"
    columns = {"lang": [d.language for d in DOCUMENTS], "text": [d.text for d in DOCUMENTS], "id": [1, 2, 3]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert read(path) == DOCUMENTS


def test_empty_lines_separate_the_documents_of_plain_text(tmp_path):
    path = tmp_path / "pt-BR.txt"
    path.write_text("\n\num\n  dois\n\n\n \ntrês\n")
    assert read(path) == [Document("um\n  dois", "pt-BR"), Document("três", "pt-BR")]


def test_the_files_name_is_a_language_where_nothing_else_says_one(tmp_path):
    path = tmp_path / "de.jsonl"
    path.write_text('{"text": "eins"}\n{"text": "one", "language": "en"}\n')
    assert [d.language for d in read(path)] == ["de", "en"]
    assert [d.language for d in read(path, language="nl")] == ["nl", "nl"]


def test_a_pair_of_sentences_becomes_a_translation(tmp_path):
    path = tmp_path / "opus.jsonl"
    path.write_text('{"translation": {"en": "Good day.", "de": "Guten Tag."}}\n')
    text = "Good day.\nTranslate this sentence from English to German.\nGuten Tag."
    assert read(path) == [Document(text, "en-de")]


def test_a_folder_stands_for_the_files_in_it_by_name(tmp_path):
    for name in ("b/de.txt", "a/en.txt.gz", "a/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files([tmp_path]) == [tmp_path / "a/en.txt.gz", tmp_path / "b/de.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("de.jsonl", b'{"text": "a"}\n{"text": 3}\n', "line 2: text must be a string, got 3"),
        ("de.jsonl", b'{"text"\n', "line 1 is not JSON"),
        ("de.jsonl", b"[1]\n", "line 1 must be an object, got list"),
        ("my texts.jsonl", b'{"text": "a"}\n', "line 1: its language must be a tag such as de or pt-BR, got None"),
        ("de.jsonl", b'{"text": "a", "language": "Deutsch!"}\n', "line 1: its language must be a tag"),
        (
            "opus.jsonl",
            b'{"translation": {"en": "a"}}\n',
            "line 1: translation must hold one sentence in two languages",
        ),
        ("de.txt", b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        ("de.txt.gz", b"not gzip", "cannot be read: Not a gzipped file"),
        ("de.parquet", b"not Parquet", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TrainingError) as error:
        read(path)
    assert error.value.message.startswith(f"{path}: ")
    assert message in error.value.message


@pytest.mark.parametrize(("name", "message"), [("none", "there is no such file"), ("x.pdf", "ends in")])
def test_a_file_that_cannot_be_text_is_refused(name, message, tmp_path):
    (tmp_path / "x.pdf").touch()
    with pytest.raises(TrainingError, match=message):
        find_files([tmp_path / name])
