"""What the loader asks of a checkpoint, whatever its format: shapes first, then one tensor at a time in blocks of rows.

A source holds no more than BLOCK_BYTES of copies, and closes its maps after RELEASE_BYTES, which gives their pages
back: loading then needs the model's own memory and little more. (Pages of a mapped file count where memory is limited.)
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from polyserve.errors import ModelLoadError
from polyserve.model.fields import read_json
from polyserve_kernels.types import QuantizedWeight, WeightFormat

BLOCK_BYTES = 64 * 2**20
RELEASE_BYTES = 256 * 2**20
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class TensorSource(Protocol):
    """The tensors of one checkpoint. Both members raise ModelLoadError where a file is not what it says."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape by its name in the file, in the file's order."""
        ...

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a tensor in floats, in order; a block is valid until the next one is asked for."""
        ...

    def format(self, name: str) -> WeightFormat | None:
        """How a matrix is stored, if that is integers with scales which can be packed as they are."""
        ...

    def stored(self, name: str) -> Iterator[tuple[int, Tensor | QuantizedWeight]]:
        """(first row, rows) of a matrix that has a format, as `ops.pack` takes them."""
        ...


class MappedFile(Protocol):
    """One open file of a format that can be mapped."""

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def tensor(self, name: str) -> Tensor:
        """A tensor whose bytes are the file's own."""
        ...


class FilesSource:
    """A TensorSource of one file, or of the shards that make up one checkpoint."""

    def __init__(self, files: list[Path], open_file: Callable[[Path], MappedFile]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        self._open_file = open_file
        self._opened: dict[Path, MappedFile] = {}
        self._bytes_used = 0
        for path in files:
            for name, shape in open_file(path).shapes().items():
                if name in self.shapes:
                    raise ModelLoadError(f"{path}: tensor {name} is also in {self._file_of[name].name}")
                self.shapes[name] = shape
                self._file_of[name] = path

    def format(self, name: str) -> WeightFormat | None:  # noqa: ARG002  (floats alone so far)
        return None

    def stored(self, name: str) -> Iterator[tuple[int, Tensor | QuantizedWeight]]:
        raise AssertionError(f"{name} has no format")

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        path = self._file_of[name]
        if self._bytes_used > RELEASE_BYTES:
            self._opened.clear()
            self._bytes_used = 0
        if path not in self._opened:
            self._opened[path] = self._open_file(path)
        tensor = self._opened[path].tensor(name)
        if tensor.dtype not in FLOATS:  # quantised: it means nothing without what it was scaled by
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelLoadError(f"{path}: tensor {name} is {kind}; only float tensors can be loaded")
        self._bytes_used += tensor.nbytes
        return _row_blocks(tensor)


def _row_blocks(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Views of a tensor's rows, of about BLOCK_BYTES each."""
    num_rows = max(1, BLOCK_BYTES // max(1, tensor[:1].nbytes))
    for first in range(0, len(tensor), num_rows):
        yield first, tensor[first : first + num_rows]


def checkpoint_files(folder: Path, name: str) -> list[Path]:
    """A checkpoint's files in one format: `name`, or the shards that its index lists; none if it has neither."""
    if (folder / name).is_file():
        return [folder / name]
    index_path = folder / f"{name}.index.json"
    if not index_path.is_file():
        return []
    weight_map = read_json(index_path).inner("weight_map")
    if weight_map is None or not weight_map.values:
        raise ModelLoadError(f"{index_path}: weight_map is missing")
    files: list[Path] = []
    for file_name in dict.fromkeys(weight_map.text(tensor) for tensor in weight_map.values):
        if Path(file_name).name != file_name:
            raise ModelLoadError(f"{index_path}: {file_name!r} is not a file of this folder")
        if not (folder / file_name).is_file():
            raise ModelLoadError(f"{index_path}: {file_name} is missing")
        files.append(folder / file_name)
    return files
