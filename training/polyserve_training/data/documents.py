"""Documents out of files: plain text, JSON lines or Parquet, as they are or compressed by gzip or zstd.

.txt       documents are separated by empty lines, as in CC-100
.jsonl     one object a line; .parquet: one row a document. Fields: `text`, or `translation` with the same sentence in
           two languages ({"en": ..., "de": ...}, as Hugging Face has OPUS), which becomes a bilingual document
Language   the one that is given for all; else the field `language` (or `lang`); else the file's name up to its first
           dot, where that is a language tag: `de.txt.gz`. Of a bilingual document it is both: `en-de`
Source     the bilingual prompt is the one that PolyLM's base models answer: https://github.com/DAMO-NLP-MT/PolyLM
"""

import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import orjson

from polyserve.errors import TrainingError

TEXT, JSONL, PARQUET = ".txt", ".jsonl", ".parquet"
COMPRESSIONS = ("", ".gz", ".zst")
SUFFIXES = (*(kind + end for kind in (TEXT, JSONL) for end in COMPRESSIONS), PARQUET)
TAG = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
BILINGUAL_TAG = re.compile(r"[a-z]{2,3}(-[A-Z][A-Za-z0-9]+)*-[a-z]{2,3}(-[A-Z][A-Za-z0-9]+)*")
BILINGUAL = "{source}\nTranslate this sentence from {source_name} to {target_name}.\n{target}"
LANGUAGE_NAMES = {
    "ar": "Arabic", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "he": "Hebrew",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish",
    "pt": "Portuguese", "ru": "Russian", "th": "Thai", "tr": "Turkish", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    language: str


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and those in named folders by name. Raises TrainingError if one is unusable."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES)) if path.is_dir() else [path]
        if not inside:
            raise TrainingError(f"{path}: holds no file that ends in {', '.join(SUFFIXES)}")
        found += inside
    for path in found:
        if not path.is_file():
            raise TrainingError(f"{path}: there is no such file")
        if not path.name.endswith(SUFFIXES):
            raise TrainingError(f"{path}: must be a file that ends in {', '.join(SUFFIXES)}, or a folder of such files")
    return found


def read_documents(
    files: Sequence[Path], *, language: str | None = None, default: str | None = None
) -> Iterator[Document]:
    """Every document that is not empty, in order. Raises TrainingError where a file is not what its name says.

    language: of all documents, whatever they say.  default: of those that say none, which are errors without it.
    """
    for path in files:
        try:
            for document in _documents_of(path, language, default):
                if document.text:
                    yield document
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise TrainingError(f"{path}: cannot be read: {error}") from error


def _documents_of(path: Path, language: str | None, default: str | None) -> Iterator[Document]:
    if path.name.endswith(PARQUET):
        rows = _parquet_rows(path)
        return (_from_fields(row, f"{path}: row {n}", path, language, default) for n, row in rows)
    if JSONL in path.suffixes:
        lines = read_objects(path)
        return (_from_fields(fields, f"{path}: line {n}", path, language, default) for n, fields in lines)
    return _from_text(path, _checked(language or _named_by(path) or default, str(path)))


def _from_text(path: Path, language: str) -> Iterator[Document]:
    lines: list[str] = []
    with open_compressed(path, "rt") as file:
        for line in file:
            if line.strip():
                lines.append(line)
            elif lines:
                yield Document("".join(lines).rstrip("\n"), language)
                lines = []
    yield Document("".join(lines).rstrip("\n"), language)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with their line numbers. Raises TrainingError."""
    with open_compressed(path, "rt") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                fields = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise TrainingError(f"{path}: line {number} is not JSON: {error}") from error
            if not isinstance(fields, dict):
                raise TrainingError(f"{path}: line {number} must be an object, got {type(fields).__name__}")
            yield number, fields


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            names = set(file.schema_arrow.names) & {"text", "translation", "language", "lang"}
            for batch in file.iter_batches(batch_size=1024, columns=sorted(names)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ArrowException as error:
        raise TrainingError(f"{path}: cannot be read as Parquet: {error}") from error


def _from_fields(
    fields: Mapping[str, Any], where: str, path: Path, language: str | None, default: str | None
) -> Document:
    if fields.get("translation") is not None:
        return _bilingual(fields["translation"], where)
    text = fields.get("text")
    if not isinstance(text, str):
        raise TrainingError(f"{where}: text must be a string, got {text!r}")
    return Document(text, language_of(fields, path, where, default=default) if language is None else language)


def language_of(fields: Mapping[str, Any], path: Path, where: str, *, default: str | None) -> str:
    """What a line says its language is, or its file's name does. Raises TrainingError if that is no tag."""
    return _checked(fields.get("language") or fields.get("lang") or _named_by(path) or default, where)


def _bilingual(pair: object, where: str) -> Document:
    """Both sentences with the prompt between them, in the order in which they stand."""
    texts = {tag: text for tag, text in pair.items() if text is not None} if isinstance(pair, dict) else {}
    if len(texts) != 2 or not all(isinstance(text, str) and text for text in texts.values()):
        raise TrainingError(f"{where}: translation must hold one sentence in two languages, got {pair!r}")
    (source_tag, source), (target_tag, target) = texts.items()
    names = [LANGUAGE_NAMES.get(tag.partition("-")[0], tag) for tag in (source_tag, target_tag)]
    text = BILINGUAL.format(source=source, target=target, source_name=names[0], target_name=names[1])
    return Document(text, f"{_checked(source_tag, where)}-{_checked(target_tag, where)}")


def _named_by(path: Path) -> str | None:
    stem = path.name.partition(".")[0]
    return stem if TAG.fullmatch(stem) else None


def _checked(language: object, where: str) -> str:
    if not isinstance(language, str) or not TAG.fullmatch(language):
        raise TrainingError(f"{where}: its language must be a tag such as de or pt-BR, got {language!r}")
    return language


def open_compressed(path: Path, mode: Literal["rt", "wt"]) -> AbstractContextManager[IO[str]]:
    """A file of text, compressed as its ending says."""
    if path.suffix == ".zst":
        import zstandard

        return cast(AbstractContextManager[IO[str]], zstandard.open(path, mode, encoding="utf-8"))
    if path.suffix == ".gz":
        return cast(AbstractContextManager[IO[str]], gzip.open(path, mode, encoding="utf-8"))
    return path.open(mode, encoding="utf-8")
