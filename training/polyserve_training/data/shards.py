"""Tokens on disk: a folder for each source of text, in it a stream of tokens for each language, cut into shards.

FOLDER/index.json          what there is, by language, and the SHA-256 of every file; the hash of the tokenizer
FOLDER/LANG-00000.tokens   token ids of document after document, each with the end-of-text id after it; uint16 or uint32
FOLDER/LANG-00000.starts   the place of each document's first token in this shard, then the shard's length; uint64
Files are little-endian and are mapped into memory. The fingerprint is a hash of the index, and so of everything.
A folder appears when it is complete: until then its name ends in `.partial`, which the next attempt replaces.
"""

import hashlib
import shutil
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from polyserve.errors import TrainingError

INDEX = "index.json"
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    name: str  # of its files, without the ending
    num_tokens: int
    num_documents: int
    tokens_sha256: str
    starts_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEntry:
    """One language of a source."""

    num_tokens: int  # the end of each document is one
    num_documents: int
    num_bytes: int  # of text, in UTF-8
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    version: Literal[1] = 1
    tokenizer_sha256: str
    vocab_size: int
    dtype: Literal["uint16", "uint32"]
    streams: dict[str, StreamEntry]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class DatasetWriter:
    """Writes one folder, inside `with`. `finish` makes it appear; without it nothing does."""

    def __init__(self, folder: Path, *, tokenizer_sha256: str, vocab_size: int, shard_tokens: int) -> None:
        if folder.exists():
            raise TrainingError(f"{folder}: exists already")
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._tokenizer_sha256, self._vocab_size = tokenizer_sha256, vocab_size
        self._dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= 2**16 else "uint32"
        self._shard_tokens = shard_tokens
        self._streams: dict[str, _StreamWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in self._streams.values():
            stream.abandon()

    def append(self, language: str, ids: Sequence[int], *, num_bytes: int) -> None:
        """Add a document, its end-of-text id included."""
        if language not in self._streams:
            self._streams[language] = _StreamWriter(self._partial, language, np.dtype(self._dtype), self._shard_tokens)
        self._streams[language].append(ids, num_bytes)

    def finish(self) -> Index:
        index = Index(
            tokenizer_sha256=self._tokenizer_sha256,
            vocab_size=self._vocab_size,
            dtype=self._dtype,
            streams={language: self._streams[language].finish() for language in sorted(self._streams)},
        )
        (self._partial / INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1))
        self._partial.rename(self._folder)
        return index


class _StreamWriter:
    """One language's shards, one open at a time."""

    def __init__(self, folder: Path, language: str, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self._folder, self._language, self._shard_tokens = folder, language, shard_tokens
        self._dtype = dtype.newbyteorder("<")
        self._shards: list[ShardEntry] = []
        self._num_bytes = 0
        self._open()

    def _open(self) -> None:
        self._name = f"{self._language}-{len(self._shards):05}"
        self._file = (self._folder / f"{self._name}.tokens").open("wb")
        self._hash = hashlib.sha256()
        self._starts = [0]

    def append(self, ids: Sequence[int], num_bytes: int) -> None:
        if self._starts[-1] >= self._shard_tokens:
            self._finish_shard()
            self._open()
        data = np.asarray(ids, dtype=self._dtype).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._starts.append(self._starts[-1] + len(ids))
        self._num_bytes += num_bytes

    def _finish_shard(self) -> None:
        self._file.close()
        starts = np.asarray(self._starts, dtype="<u8").tobytes()
        (self._folder / f"{self._name}.starts").write_bytes(starts)
        self._shards.append(
            ShardEntry(
                name=self._name,
                num_tokens=self._starts[-1],
                num_documents=len(self._starts) - 1,
                tokens_sha256=self._hash.hexdigest(),
                starts_sha256=hashlib.sha256(starts).hexdigest(),
            )
        )

    def abandon(self) -> None:
        self._file.close()

    def finish(self) -> StreamEntry:
        self._finish_shard()
        return StreamEntry(
            num_tokens=sum(shard.num_tokens for shard in self._shards),
            num_documents=sum(shard.num_documents for shard in self._shards),
            num_bytes=self._num_bytes,
            shards=tuple(self._shards),
        )


class Stream:
    """The tokens of one language of a source, as one long line. Maps its files when they are first read."""

    def __init__(self, folder: Path, entry: StreamEntry, dtype: str) -> None:
        self.entry = entry
        self._folder = folder
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._firsts = [0, *accumulate(shard.num_tokens for shard in entry.shards)]  # the place of each shard, the end

    @property
    def num_tokens(self) -> int:
        return self.entry.num_tokens

    @cached_property
    def _maps(self) -> list[tuple[NDArray[Any], NDArray[np.uint64]]]:
        maps: list[tuple[NDArray[Any], NDArray[np.uint64]]] = []
        for shard in self.entry.shards:
            path = self._folder / shard.name
            tokens = np.memmap(path.with_name(f"{shard.name}.tokens"), dtype=self._dtype, mode="r")
            maps.append((tokens, np.memmap(path.with_name(f"{shard.name}.starts"), dtype="<u8", mode="r")))
        return maps

    def read(self, start: int, stop: int) -> tuple[Ids, Ids]:
        """Tokens from start to stop, and the places, counted from start, of documents that begin after start and up to
        stop."""
        tokens: list[Ids] = []
        starts: list[Ids] = []
        origin, shard = start, bisect_right(self._firsts, start) - 1
        while start < stop and shard < len(self._maps):
            first, (ids, begins) = self._firsts[shard], self._maps[shard]
            tokens.append(ids[start - first : stop - first].astype(np.int64))
            low, high = np.searchsorted(begins, [start - first + 1, stop - first + 1])
            starts.append(begins[low:high].astype(np.int64) + (first - origin))
            start = self._firsts[shard + 1]
            shard += 1
        return np.concatenate(tokens), np.concatenate(starts)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A source of text, open for reading."""

    folder: Path
    index: Index
    streams: dict[str, Stream]  # by language


def open_dataset(folder: Path, *, verify: Literal["full", "size"] = "full") -> Dataset:
    """Open a folder, and look whether its files are those of the index: all of their bytes, or their sizes alone."""
    path = folder / INDEX
    try:
        index = msgspec.json.decode(path.read_bytes(), type=Index)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror}; `polyserve data tokenize` makes it") from error
    except msgspec.MsgspecError as error:
        raise TrainingError(f"{path}: not an index of tokens: {error}") from error
    for language, stream in index.streams.items():
        for shard in stream.shards:
            if Path(shard.name).name != shard.name:
                raise TrainingError(f"{path}: {shard.name!r} of {language} is not a file of this folder")
            tokens = folder / f"{shard.name}.tokens"
            starts = folder / f"{shard.name}.starts"
            num_bytes = shard.num_tokens * np.dtype(index.dtype).itemsize
            _check_file(tokens, num_bytes, shard.tokens_sha256 if verify == "full" else None)
            _check_file(starts, 8 * (shard.num_documents + 1), shard.starts_sha256 if verify == "full" else None)
    return Dataset(folder, index, {name: Stream(folder, entry, index.dtype) for name, entry in index.streams.items()})


def _check_file(path: Path, num_bytes: int, sha256: str | None) -> None:
    if not path.is_file():
        raise TrainingError(f"{path}: is missing")
    if path.stat().st_size != num_bytes:
        raise TrainingError(f"{path}: must have {num_bytes} bytes, got {path.stat().st_size}: it has changed")
    if sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise TrainingError(f"{path}: its fingerprint has changed: {found[:12]} instead of {sha256[:12]}")
