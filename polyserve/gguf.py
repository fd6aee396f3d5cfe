"""GGUF files (versions 2 and 3, little-endian) read over a memory map: header, metadata and tensor index. No torch.

Layout   magic "GGUF" | version u32 | number of tensors u64 | number of metadata entries u64 | entries | tensors | data
entry    key string | value type u32 | value
tensor   name string | number of dimensions u32 | dimensions u64 each, innermost first | type u32 | offset in data u64
string   length in bytes u64 | UTF-8
array    element type u32 | count u64 | elements
data     begins at the next multiple of `general.alignment`, or of 32
The file is not trusted: each count, length, size and offset is checked against it before it is used. Whatever is
damaged, truncated or foreign is a ModelLoadError of one line. Tensor bytes are views of the map: only what is used is
ever read.
The numbers are the format's own; its Python package has them too, and takes a tenth of a second to import.
Source   https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np

from polyserve.errors import ModelLoadError

MAX_DIMENSIONS = 4
_MIN_ENTRY_BYTES = 8 + 4 + 1  # empty key, value type, one byte
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # empty name, one dimension


class ValueType(IntEnum):
    """How a metadata value is stored."""

    UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)


class TensorType(IntEnum):
    """A type that `gguf.quants.dequantize` can turn into fp32: its number, elements of a block, bytes of a block."""

    block_size: int
    block_bytes: int

    def __new__(cls, number: int, block_size: int, block_bytes: int) -> "TensorType":
        kind = int.__new__(cls, number)
        kind._value_, kind.block_size, kind.block_bytes = number, block_size, block_bytes
        return kind

    F32 = 0, 1, 4
    F16 = 1, 1, 2
    BF16 = 30, 1, 2
    Q4_0 = 2, 32, 18
    Q4_1 = 3, 32, 20
    Q5_0 = 6, 32, 22
    Q5_1 = 7, 32, 24
    Q8_0 = 8, 32, 34
    Q2_K = 10, 256, 84
    Q3_K = 11, 256, 110
    Q4_K = 12, 256, 144
    Q5_K = 13, 256, 176
    Q6_K = 14, 256, 210
    TQ1_0 = 34, 256, 54
    TQ2_0 = 35, 256, 66
    MXFP4 = 39, 32, 17
    NVFP4 = 40, 64, 36
    IQ1_S = 19, 256, 50
    IQ1_M = 29, 256, 56
    IQ2_XXS = 16, 256, 66
    IQ2_XS = 17, 256, 74
    IQ2_S = 22, 256, 82
    IQ3_XXS = 18, 256, 98
    IQ3_S = 21, 256, 110
    IQ4_NL = 20, 32, 18
    IQ4_XS = 23, 256, 136


_TYPES = {kind.value: kind for kind in TensorType}
_SCALARS: dict[ValueType, struct.Struct] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
_U64 = _SCALARS[ValueType.UINT64]
_ENDS = "it ends inside"


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One stored tensor. `gguf.quants.dequantize(tensor.data, tensor.type)` gives fp32 of `shape`."""

    name: str
    shape: tuple[int, ...]  # numpy order: outermost first
    type: TensorType
    data: np.ndarray  # uint8 [*shape[:-1], bytes of one innermost row], a read-only view of the file


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """What a file says. A metadata value is an int, float, bool, str, list[str], or an np.ndarray (any other array)."""

    path: Path
    metadata: dict[str, object]
    tensors: dict[str, GGUFTensor]  # in the file's order


def read_gguf(path: Path) -> GGUFFile:
    """Read header, metadata and tensor index. Raises ModelLoadError if the file is not a whole, readable GGUF file."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24:
                raise ModelLoadError(f"{path}: not a GGUF file: {size} bytes are less than its header")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from error
    cursor = _Cursor(path, content)
    num_tensors, num_entries = _read_header(cursor)
    metadata: dict[str, object] = {}
    for _ in range(num_entries):
        key = cursor.string("a metadata key")
        if key in metadata:
            cursor.fail(f"metadata key {key!r} is there twice")
        metadata[key] = cursor.value(key)
    _check_not_split(path, metadata)
    return GGUFFile(path, metadata, _read_tensors(cursor, num_tensors, _alignment(cursor, metadata)))


class _Cursor:
    """A place in the file. Every read checks that the file goes that far."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path = path
        self.content = content
        self.size = len(content)
        self.position = 0

    def fail(self, what: str) -> NoReturn:
        raise ModelLoadError(f"{self.path}: damaged or truncated GGUF file: {what}")

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        end = self.position + count
        if end > self.size:
            self.fail(f"{_ENDS} {what}")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def scalar(self, kind: ValueType, what: str) -> int | float | bool:
        form = _SCALARS[kind]
        value: int | float | bool = form.unpack(self.take(form.size, what))[0]
        return value

    def u32(self, what: str) -> int:
        return int(self.scalar(ValueType.UINT32, what))

    def u64(self, what: str) -> int:
        return int(self.scalar(ValueType.UINT64, what))

    def count(self, least_bytes: int, what: str) -> int:
        """A number of things that take at least `least_bytes` each, all of which the rest of the file can hold."""
        count = self.u64(what)
        if count * least_bytes > self.size - self.position:
            self.fail(f"{count} as {what} is more than the file can hold")
        return count

    def string(self, what: str) -> str:
        raw = self.take(self.u64(what), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def value(self, key: str) -> object:
        """A metadata value, its type first."""
        kind = self.value_type(key)
        if kind == ValueType.STRING:
            return self.string(f"metadata {key!r}")
        if kind != ValueType.ARRAY:
            return self.scalar(kind, f"metadata {key!r}")
        element = self.value_type(key)
        if element == ValueType.ARRAY:
            self.fail(f"metadata {key!r} is an array of arrays")
        return self.strings(key) if element == ValueType.STRING else self.numbers(element, key)

    def value_type(self, key: str) -> ValueType:
        number = self.u32(f"metadata {key!r}")
        try:
            return ValueType(number)
        except ValueError:
            self.fail(f"metadata {key!r} has the unknown value type {number}")

    def strings(self, key: str) -> list[str]:
        """An array of strings. One flat loop: vocabularies have 262,144 of them, twice that with merges."""
        count = self.count(8, f"the length of {key!r}")
        content, position, size, length_at = self.content, self.position, self.size, _U64.unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                begin = position + 8
                position = begin + length_at(content, position)[0]
                if position > size:
                    self.fail(f"{_ENDS} metadata {key!r}")
                found.append(content[begin:position].decode())
        except struct.error:
            self.fail(f"{_ENDS} metadata {key!r}")
        except UnicodeDecodeError:
            self.fail(f"string {len(found)} of metadata {key!r} is not UTF-8")
        self.position = position
        return found

    def numbers(self, kind: ValueType, key: str) -> np.ndarray:
        """An array of numbers or truth values."""
        form = _SCALARS[kind]
        count = self.count(form.size, f"the length of {key!r}")
        raw = self.take(count * form.size, f"metadata {key!r}")
        if kind == ValueType.BOOL:
            return np.frombuffer(raw, np.uint8).astype(np.bool_)
        numbers: np.ndarray = np.frombuffer(raw, np.dtype(form.format))
        return numbers


def _read_header(cursor: _Cursor) -> tuple[int, int]:
    """Check magic and version; return how many tensors and metadata entries there are."""
    magic = cursor.take(4, "the header")
    if magic != b"GGUF":
        raise ModelLoadError(f"{cursor.path}: not a GGUF file: it begins with {magic!r}")
    version = cursor.u32("the header")
    if version & 0xFFFF == 0:  # versions are small, so the other byte order puts them into the upper half
        raise ModelLoadError(f"{cursor.path}: a big-endian GGUF file; only little-endian ones are read")
    if version not in (2, 3):
        raise ModelLoadError(f"{cursor.path}: GGUF version {version}; only 2 and 3 are read")
    num_tensors = cursor.count(_MIN_TENSOR_BYTES, "the number of tensors")
    return num_tensors, cursor.count(_MIN_ENTRY_BYTES, "the number of metadata entries")


def _check_not_split(path: Path, metadata: dict[str, object]) -> None:
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelLoadError(f"{path}: one of {parts} parts of a split GGUF file; merge them into one file first")


def _alignment(cursor: _Cursor, metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        cursor.fail(f"general.alignment must be a power of two, got {alignment!r}")
    return alignment


def _read_tensors(cursor: _Cursor, num_tensors: int, alignment: int) -> dict[str, GGUFTensor]:
    """Read the index, then lay views over the tensor data that follows it."""
    index = [_read_tensor_entry(cursor) for _ in range(num_tensors)]
    start = -(-cursor.position // alignment) * alignment
    content = np.frombuffer(cursor.content, np.uint8)
    tensors: dict[str, GGUFTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, shape, kind, offset in index:
        if name in tensors:
            cursor.fail(f"tensor {name!r} is there twice")
        if offset % alignment:
            cursor.fail(f"tensor {name!r} lies at offset {offset}, which is no multiple of {alignment}")
        row_bytes = shape[-1] // kind.block_size * kind.block_bytes
        begin = start + offset
        end = begin + prod(shape[:-1]) * row_bytes
        if end > cursor.size:
            cursor.fail(f"tensor {name!r} needs bytes {begin} to {end}, and the file has {cursor.size}")
        spans.append((begin, end, name))
        tensors[name] = GGUFTensor(name, shape, kind, content[begin:end].reshape(*shape[:-1], row_bytes))
    spans.sort()
    for (_, end, name), (begin, _, other) in pairwise(spans):
        if begin < end:
            cursor.fail(f"tensors {name!r} and {other!r} overlap")
    return tensors


def _read_tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], TensorType, int]:
    """One line of the index: name, shape (outermost first), type, offset in the tensor data."""
    name = cursor.string("a tensor's name")
    what = f"the index entry of tensor {name!r}"
    num_dimensions = cursor.u32(what)
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        cursor.fail(f"tensor {name!r} has {num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible")
    shape = tuple(reversed([cursor.u64(what) for _ in range(num_dimensions)]))
    if 0 in shape:
        cursor.fail(f"tensor {name!r} has the empty shape {shape}")
    number = cursor.u32(what)
    kind = _TYPES.get(number)
    if kind is None:
        raise ModelLoadError(f"{cursor.path}: tensor {name!r} has the type {number}, which cannot be read")
    if shape[-1] % kind.block_size:
        cursor.fail(f"a row of tensor {name!r} has {shape[-1]} elements, no whole number of {kind.name} blocks")
    return name, shape, kind, cursor.u64(what)
