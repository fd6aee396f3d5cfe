"""GGUF files: what is written is read, and nothing but a whole, known file is accepted."""

import random
import struct
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFWriter

from polyserve.errors import ModelLoadError
from polyserve.gguf import TensorType, read_gguf

RNG = np.random.default_rng(0)
SCALARS = {
    "uint8": 200,
    "int8": -100,
    "uint16": 60_000,
    "int16": -30_000,
    "uint32": 4_000_000_000,
    "int32": -2_000_000_000,
    "uint64": 2**63 + 1,
    "int64": -(2**62),
    "float32": 0.5,
    "float64": 0.1,
    "bool": True,
    "string": "tête 頭 🙂",
}


def write(path: Path, *, endianess: GGUFEndian = GGUFEndian.LITTLE, alignment: int | None = None) -> Path:
    """A small file with every kind of metadata value and two tensors."""
    writer = GGUFWriter(path, "llama", endianess=endianess)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for kind, value in SCALARS.items():
        getattr(writer, f"add_{kind}")(f"test.{kind}", value)
    writer.add_array("test.strings", ["one", "", "trois été"])
    writer.add_array("test.integers", [1, -2, 3])
    writer.add_array("test.floats", [0.5, -1.5])
    writer.add_array("test.bools", [True, False, True])
    writer.add_tensor("first.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("second.weight", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def by_hand(
    path: Path,
    entries: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    version: int = 3,
    num_tensors: int | None = None,
    num_entries: int | None = None,
) -> Path:
    """A file with the given parts and 128 bytes of tensor data, however wrong."""
    entries, tensors = entries or [], tensors or []
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(128))
    return path


def message_of(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ModelLoadError) as caught:
        read_gguf(path)
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    return caught.value.message


def test_every_kind_of_metadata_is_read(tmp_path: Path) -> None:
    metadata = read_gguf(write(tmp_path / "a.gguf")).metadata
    assert {kind: metadata[f"test.{kind}"] for kind in SCALARS} == SCALARS
    assert metadata["general.architecture"] == "llama"


def test_arrays_of_strings_are_lists_and_arrays_of_numbers_are_numpy(tmp_path: Path) -> None:
    metadata = read_gguf(write(tmp_path / "a.gguf")).metadata
    assert metadata["test.strings"] == ["one", "", "trois été"]
    for name, expected in (("integers", [1, -2, 3]), ("floats", [0.5, -1.5]), ("bools", [True, False, True])):
        value = metadata[f"test.{name}"]
        assert isinstance(value, np.ndarray)
        assert value.tolist() == expected


@pytest.mark.parametrize("alignment", [None, 64, 256])
def test_tensors_lie_where_the_alignment_says(tmp_path: Path, alignment: int | None) -> None:
    tensors = read_gguf(write(tmp_path / "a.gguf", alignment=alignment)).tensors
    assert list(tensors) == ["first.weight", "second.weight"]
    first, second = tensors["first.weight"], tensors["second.weight"]
    assert (first.shape, second.shape) == ((2, 3), (5,))
    np.testing.assert_array_equal(first.data.view(np.float32), np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(second.data.view(np.float16), np.arange(5))


@pytest.mark.parametrize("kind", TensorType, ids=lambda kind: kind.name)
def test_every_readable_type_dequantises_to_its_shape(tmp_path: Path, kind: TensorType) -> None:
    shape = (2, 3, 256)
    row_bytes = gguf.quant_shape_to_byte_shape(shape, GGMLQuantizationType[kind.name])[-1]
    raw = RNG.integers(0, 256, (2, 3, row_bytes), dtype=np.uint8)
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=GGMLQuantizationType[kind.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_gguf(tmp_path / "a.gguf").tensors["w"]
    assert (read.shape, read.type) == (shape, kind)
    np.testing.assert_array_equal(read.data, raw)
    with np.errstate(all="ignore"):
        assert gguf.quants.dequantize(read.data, read.type).shape == shape


def test_version_2_is_read_and_others_are_refused_by_number(tmp_path: Path) -> None:
    assert read_gguf(by_hand(tmp_path / "2.gguf", version=2)).tensors == {}
    assert "version 1" in message_of(by_hand(tmp_path / "1.gguf", version=1))
    assert "version 4" in message_of(by_hand(tmp_path / "4.gguf", version=4))


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    assert "big-endian" in message_of(write(tmp_path / "a.gguf", endianess=GGUFEndian.BIG))


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04" + bytes(60), b"not a model at all, but long enough"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    assert "not a GGUF file" in message_of(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in message_of(tmp_path / "none.gguf")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = write(tmp_path / "whole.gguf").read_bytes()
    last = len(content.rstrip(b"\0"))  # what follows is the padding of the last tensor
    path = tmp_path / "cut.gguf"
    for length in [*range(0, last, 3), *range(last - 40, last)]:
        path.write_bytes(content[:length])
        message_of(path)


def test_a_file_with_changed_bytes_is_read_or_refused_and_nothing_else_happens(tmp_path: Path) -> None:
    content = write(tmp_path / "whole.gguf").read_bytes()
    rng, path, read = random.Random(0), tmp_path / "changed.gguf", 0
    for _ in range(800):
        changed = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        path.write_bytes(changed)
        with suppress(ModelLoadError):
            read_gguf(path)
            read += 1
    assert 100 < read < 700


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([entry("a", 0, b"\1"), entry("a", 0, b"\1")], "'a' is there twice"),
        ([entry("a", 13, b"\1")], "'a' has the unknown value type 13"),
        ([entry("a", 9, struct.pack("<IQ", 9, 1) + bytes(20))], "'a' is an array of arrays"),
        ([entry("a", 9, struct.pack("<IQ", 77, 1) + bytes(20))], "'a' has the unknown value type 77"),
        ([entry("a", 8, string(b"\xff\xfe"))], "metadata 'a' is not UTF-8"),
        ([entry("a", 9, struct.pack("<IQ", 8, 2) + string("x") + string(b"\xc3"))], "string 1 of metadata 'a' is not"),
        ([entry("a", 8, struct.pack("<Q", 2**63) + b"x")], "ends inside metadata 'a'"),
        ([entry("a", 9, struct.pack("<IQ", 8, 2**61) + string("x"))], "the length of 'a' is more than"),
        ([entry("a", 9, struct.pack("<IQ", 6, 2**62))], "the length of 'a' is more than"),
        ([entry("a", 9, struct.pack("<IQQ", 8, 1, 2**64 - 9))], "ends inside metadata 'a'"),
        ([entry("a", 9, struct.pack("<IQQ", 8, 1, 500))], "ends inside metadata 'a'"),
        ([entry("general.alignment", 4, struct.pack("<I", 0))], "general.alignment must be a power of two, got 0"),
        ([entry("general.alignment", 8, string("32"))], "general.alignment must be a power of two, got '32'"),
        ([entry("split.count", 2, struct.pack("<H", 3))], "one of 3 parts of a split GGUF file"),
    ],
)
def test_damaged_metadata_is_named(tmp_path: Path, entries: list[bytes], expected: str) -> None:
    assert expected in message_of(by_hand(tmp_path / "a.gguf", entries))


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([tensor("w", [4]), tensor("w", [4], offset=32)], "tensor 'w' is there twice"),
        ([tensor("w", [4], offset=8)], "offset 8, which is no multiple of 32"),
        ([tensor("w", [4], offset=128)], "tensor 'w' needs bytes"),
        ([tensor("w", [2**62, 4])], "tensor 'w' needs bytes"),
        ([tensor("w", [2**63, 2**63, 2**63, 2])], "tensor 'w' needs bytes"),
        ([tensor("w", [4, 0])], "tensor 'w' has the empty shape (0, 4)"),
        ([tensor("w", [])], "tensor 'w' has 0 dimensions"),
        ([tensor("w", [1] * 5)], "tensor 'w' has 5 dimensions"),
        ([tensor("w", [4], kind=999)], "tensor 'w' has the type 999, which cannot be read"),
        ([tensor("w", [32], kind=GGMLQuantizationType.Q8_1)], "tensor 'w' has the type 9, which cannot be read"),
        ([tensor("w", [48], kind=GGMLQuantizationType.Q4_0)], "48 elements, no whole number of Q4_0 blocks"),
        ([tensor("a", [16]), tensor("b", [8], offset=32)], "tensors 'a' and 'b' overlap"),
    ],
)
def test_a_damaged_tensor_is_named(tmp_path: Path, tensors: list[bytes], expected: str) -> None:
    assert expected in message_of(by_hand(tmp_path / "a.gguf", tensors=tensors))


@pytest.mark.parametrize("count", [1_000, 2**32, 2**64 - 1])
def test_counts_that_the_file_cannot_hold_are_refused_at_once(tmp_path: Path, count: int) -> None:
    assert "the number of tensors" in message_of(by_hand(tmp_path / "a.gguf", num_tensors=count))
    assert "the number of metadata entries" in message_of(by_hand(tmp_path / "b.gguf", num_entries=count))


@pytest.mark.model_package
def test_a_real_file_is_read_whole(smollm2_file: Path) -> None:
    file = read_gguf(smollm2_file)
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == 49_152
    assert len(file.tensors) == 272
    embedding = file.tensors["token_embd.weight"]
    assert (embedding.shape, embedding.type) == ((49_152, 576), GGMLQuantizationType.Q8_0)
