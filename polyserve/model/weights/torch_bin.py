"""Checkpoints in PyTorch's own format: `pytorch_model.bin`, or shards with an index, over a memory map.

Only tensors are ever unpickled (`weights_only`): a pickle that wants anything else built or called is refused.
"""

from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from polyserve.errors import ModelLoadError
from polyserve.model.weights.source import RELEASE_BYTES, check_dtype, checkpoint_files, row_blocks

FILE_NAME = "pytorch_model.bin"


class TorchBinSource:
    """A TensorSource."""

    def __init__(self, files: list[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, _MappedFile] = {}
        for path in files:
            file = _MappedFile(path)
            for name, tensor in file.tensors.items():
                if name in self.shapes:
                    raise ModelLoadError(f"{path}: tensor {name} is also in another file of the checkpoint")
                self.shapes[name] = tuple(tensor.shape)
                self._files[name] = file

    @classmethod
    def in_folder(cls, folder: Path) -> "TorchBinSource | None":
        """The folder's `pytorch_model*.bin` checkpoint, if it has one."""
        files = checkpoint_files(folder, FILE_NAME)
        return None if files is None else cls(files)

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        tensor = self._files[name].tensor(name)
        check_dtype(self._files[name].path, name, tensor.dtype)
        return row_blocks(tensor)


class _MappedFile:
    """One file. It is opened anew now and then, since only closing the map gives its pages back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = _load(path)
        self._bytes_used = 0

    def tensor(self, name: str) -> Tensor:
        if self._bytes_used > RELEASE_BYTES:
            self.tensors = _load(self.path)
            self._bytes_used = 0
        tensor = self.tensors[name]
        self._bytes_used += tensor.nbytes
        return tensor


def _load(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise ModelLoadError(f"{path}: damaged, or holds more than tensors, which is never loaded") from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelLoadError(f"{path}: damaged, truncated or not written by torch 1.6 or later: {reason}") from error
    if not isinstance(state, dict):
        raise ModelLoadError(f"{path}: must hold a dict of tensors, got {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ModelLoadError(f"{path}: {name!r} must be a dense tensor, got {type(tensor).__name__}")
    return state
