"""Checkpoints in safetensors, one file or shards with an index, over a memory map.

Source   https://github.com/huggingface/safetensors#format
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyserve.errors import ModelLoadError
from polyserve.model.weights.source import RELEASE_BYTES, check_dtype, checkpoint_files, row_blocks

FILE_NAME = "model.safetensors"


class SafetensorsSource:
    """A TensorSource."""

    def __init__(self, files: list[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, _MappedFile] = {}
        for path in files:
            file = _MappedFile(path)
            for name, shape in file.shapes():
                if name in self.shapes:
                    raise ModelLoadError(f"{path}: tensor {name} is also in another file of the checkpoint")
                self.shapes[name] = shape
                self._files[name] = file

    @classmethod
    def in_folder(cls, folder: Path) -> "SafetensorsSource | None":
        """The folder's safetensors checkpoint, if it has one."""
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
        self._opened = self._open()
        self._bytes_used = 0

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name in self._opened.keys():  # noqa: SIM118 (not a dict)
            yield name, tuple(self._opened.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        if self._bytes_used > RELEASE_BYTES:
            self._opened = self._open()
            self._bytes_used = 0
        tensor: Tensor = self._opened.get_tensor(name)
        self._bytes_used += tensor.nbytes
        return tensor

    def _open(self) -> Any:  # the package's class has no types
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{self.path}: damaged, truncated or not a safetensors file: {error}") from error
