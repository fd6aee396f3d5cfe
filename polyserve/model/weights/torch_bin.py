"""Checkpoints in PyTorch's own format: `pytorch_model.bin`, or shards with an index, over a memory map.

Only tensors are ever unpickled (`weights_only`): a pickle that wants anything else built or called is refused.
"""

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from polyserve.errors import ModelLoadError

FILE_NAME = "pytorch_model.bin"


class TorchBinFile:
    """A MappedFile."""

    def __init__(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:
            raise ModelLoadError(f"{path}: damaged, or holds more than tensors, which is never loaded") from error
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelLoadError(f"{path}: damaged, truncated or older than torch 1.6: {reason}") from error
        if not isinstance(state, dict):
            raise ModelLoadError(f"{path}: must hold a dict of tensors, got {type(state).__name__}")
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                raise ModelLoadError(f"{path}: {name!r} must be a dense tensor, got {type(tensor).__name__}")
        self._tensors: dict[str, Tensor] = state

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]
