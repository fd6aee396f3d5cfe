"""What the loader asks of a checkpoint, whatever its format: the shapes of its tensors, and then one tensor at a time
in blocks of rows.

A source never holds more than BLOCK_BYTES of copies, and lets go of file pages that it mapped after RELEASE_BYTES, so
that loading needs the model's own memory and little more: resident pages of a mapped file count like any other memory
where it is limited.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from polyserve.errors import ModelLoadError
from polyserve.model.fields import read_json

BLOCK_BYTES = 64 * 2**20
RELEASE_BYTES = 256 * 2**20
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class TensorSource(Protocol):
    """The tensors of one checkpoint. Both methods raise ModelLoadError where the file is not what it says."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape by its name in the file, in the file's order."""
        ...

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a tensor, in order; a block is valid until the next one is asked for."""
        ...


def row_blocks(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Views of at most about BLOCK_BYTES of a tensor's rows."""
    num_rows = max(1, BLOCK_BYTES // max(1, tensor[:1].nbytes))
    for first in range(0, len(tensor), num_rows):
        yield first, tensor[first : first + num_rows]


def check_dtype(path: Path, name: str, dtype: torch.dtype) -> None:
    """Refuse quantised and integer checkpoints: their tensors mean nothing without what they were scaled by."""
    if dtype not in FLOATS:
        raise ModelLoadError(
            f"{path}: tensor {name} is {str(dtype).removeprefix('torch.')}; only float tensors can be loaded"
        )


def checkpoint_files(folder: Path, name: str) -> list[Path] | None:
    """The files of a checkpoint in one format: `name` itself, or the shards that `name`.index.json lists; None if
    neither is there."""
    if (folder / name).is_file():
        return [folder / name]
    index_path = folder / f"{name}.index.json"
    if not index_path.is_file():
        return None
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
