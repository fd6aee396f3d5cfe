"""Tensors of a GGUF file: its blocks as they are, or dequantised through `gguf.quants` a few rows at a time.

ELEMENTS_AT_A_TIME is how much is dequantised at once: numpy's passes then stay in the processor's cache, which is five
times as fast as whole matrices. ELEMENTS_IN_A_BLOCK is how much is handed on at once.
"""

from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from torch import Tensor

from polyserve.gguf import GGUFFile, GGUFTensor, TensorType
from polyserve_kernels.types import GGUF_FORMATS, QuantizedWeight, WeightFormat

ELEMENTS_AT_A_TIME = 2**18
ELEMENTS_IN_A_BLOCK = 2**22


class GGUFSource:
    """A TensorSource."""

    def __init__(self, file: GGUFFile) -> None:
        self._tensors = file.tensors
        self.shapes: dict[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in file.tensors.items()}

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        tensor = self._tensors[name]
        if len(tensor.shape) == 1:
            yield 0, torch.from_numpy(_floats(tensor.data, tensor.type).copy())
            return
        row_size = prod(tensor.shape[1:])
        rows_at_a_time = max(1, ELEMENTS_AT_A_TIME // row_size)
        packed, rows_in_a_block = _rows(tensor)
        buffer = np.empty((min(rows_in_a_block, len(packed)), row_size), np.float32)
        for first in range(0, len(packed), rows_in_a_block):
            block = packed[first : first + rows_in_a_block]
            for row in range(0, len(block), rows_at_a_time):
                some = block[row : row + rows_at_a_time]
                # As one long row: gguf.quants goes through rows 16 at a time.
                values = _floats(some.reshape(1, -1), tensor.type)
                buffer[row : row + len(some)] = values.reshape(len(some), row_size)
            yield first, torch.from_numpy(buffer[: len(block)]).view(len(block), *tensor.shape[1:])

    def format(self, name: str) -> WeightFormat | None:
        tensor = self._tensors[name]
        return GGUF_FORMATS.get(tensor.type.name) if len(tensor.shape) == 2 else None

    def stored(self, name: str) -> Iterator[tuple[int, Tensor | QuantizedWeight]]:
        packed, rows_in_a_block = _rows(self._tensors[name])
        for first in range(0, len(packed), rows_in_a_block):
            yield first, torch.from_numpy(packed[first : first + rows_in_a_block].copy())  # the file's map is read-only


def _floats(data: np.ndarray, kind: TensorType) -> np.ndarray:
    if kind == TensorType.F32:
        return data.view(np.float32)
    from gguf import GGMLQuantizationType, quants  # slow to import, and not needed for blocks that stay as they are

    floats: np.ndarray = quants.dequantize(data, GGMLQuantizationType(kind))
    return floats


def _rows(tensor: GGUFTensor) -> tuple["np.ndarray[tuple[int, int], np.dtype[np.uint8]]", int]:
    """A tensor's bytes [rows, bytes of a row], and how many rows a block has."""
    rows = tensor.data.reshape(tensor.shape[0], -1)
    return rows, max(1, ELEMENTS_IN_A_BLOCK // prod(tensor.shape[1:]))
