"""Checkpoints in safetensors: one file, or shards with an index, over a memory map.

Source   https://github.com/huggingface/safetensors#format
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyserve.errors import ModelLoadError

FILE_NAME = "model.safetensors"


class SafetensorsFile:
    """A MappedFile."""

    def __init__(self, path: Path) -> None:
        try:
            self._opened: Any = safe_open(path, framework="pt")  # the package's class has no types
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{path}: damaged, truncated or not a safetensors file: {error}") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        names = self._opened.keys()
        return {name: tuple(self._opened.get_slice(name).get_shape()) for name in names}

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._opened.get_tensor(name)
        return tensor
