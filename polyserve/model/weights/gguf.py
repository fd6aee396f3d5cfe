"""Tensors of a GGUF file, dequantised through `gguf.quants` a few rows at a time.

A block is ELEMENTS_AT_A_TIME elements: numpy's passes over it then stay in the processor's cache, which is five times as fast as
whole matrices. `GGUFFile.tensors[name].data` are the packed bytes, for the day when products are computed from them.
"""

from collections.abc import Iterator
from math import prod

import gguf
import numpy as np
import torch
from torch import Tensor

from polyserve.gguf import GGUFFile

ELEMENTS_AT_A_TIME = 2**18


class GGUFSource:
    """A TensorSource."""

    def __init__(self, file: GGUFFile) -> None:
        self._tensors = file.tensors
        self.shapes: dict[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in file.tensors.items()}

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        tensor = self._tensors[name]
        packed = tensor.data if len(tensor.shape) > 1 else tensor.data[None]  # [rows, bytes of one row]
        row_size = prod(tensor.shape[1:]) if len(tensor.shape) > 1 else tensor.shape[0]
        num_rows = max(1, ELEMENTS_AT_A_TIME // row_size)
        for first in range(0, len(packed), num_rows):
            rows = packed[first : first + num_rows]
            # One long row: gguf.quants goes through many rows 16 at a time.
            values = gguf.quants.dequantize(rows.reshape(1, -1), tensor.type)
            values = np.require(values, np.float32, ["C", "W"])  # F32 comes as a view of the read-only file
            shape = (len(rows), *tensor.shape[1:]) if len(tensor.shape) > 1 else tensor.shape
            yield first, torch.from_numpy(values).view(shape)
