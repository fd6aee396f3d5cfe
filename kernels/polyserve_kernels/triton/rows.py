"""Rows of [..., C]: how they lie in memory, how many a program takes, and their sums in one order.

Order  a binary tree over the columns: halves on halves down to FOLD columns, then neighbours with neighbours. It
       follows from length and table, however a tile lies in registers: a row has the same sum beside other rows, and in
       any stride or dtype
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.launch import architecture
from polyserve_kernels.triton.tuning import ROWS, RowTuning, tuned

_LOAD = 8  # columns that one thread loads at once: 16 bytes of bfloat16


@dataclass(frozen=True, slots=True)
class Rows:
    """x as [outer, inner, C], the last dimension contiguous: slices of a packed tensor need no copy."""

    x: Tensor
    num: int
    inner: int
    outer_stride: int
    inner_stride: int


def rows_of(x: Tensor) -> Rows:
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.dim() > 3:
        x = x.reshape(-1, *x.shape[-2:])
    if x.dim() < 3:
        num = x.shape[0] if x.dim() == 2 else 1
        return Rows(x, num, 1, x.stride(0), 0)
    return Rows(x, x.shape[0] * x.shape[1], x.shape[1], x.stride(0), x.stride(1))


def row_tuning(device: torch.device) -> RowTuning:
    return tuned(ROWS, architecture(device))


@dataclass(frozen=True, slots=True)
class RowTile:
    """What a program holds in registers."""

    rows: int
    block: int  # columns, a power of 2
    num_warps: int

    @property
    def fold(self) -> int:
        """Columns that the threads hold in one load each: folding down to them takes no exchange between threads."""
        return min(self.block, 32 * self.num_warps * _LOAD)

    @property
    def options(self) -> dict[str, int]:
        """How a program is launched. It may have all registers: unasked, ptxas spills some to fit one program more."""
        return {"num_warps": self.num_warps, "num_stages": 1, "maxnreg": min(255, 65536 // (32 * self.num_warps))}


def row_tile(channels: int, *, elements: int) -> RowTile:
    """Whole rows, of so many elements together if they are short; 16 of a long one for each thread."""
    block = triton.next_power_of_2(max(channels, 1))
    return RowTile(max(1, elements // block), block, min(16, max(4, block // 512)))


@triton.jit
def row_sum(x, FOLD: tl.constexpr):
    """[ROWS, N] -> [ROWS, 1], N a power of 2."""
    if x.shape[1] > FOLD:
        return row_sum(tl.sum(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), axis=1), FOLD)
    elif x.shape[1] > 1:  # noqa: RET505  (Triton wants a return in each branch)
        return row_sum(tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)), axis=2), FOLD)
    else:
        return x


@triton.jit
def column_sum(x):
    """[ROWS, N] -> [N], ROWS a power of 2: halves on halves."""
    if x.shape[0] > 1:
        return column_sum(tl.sum(tl.reshape(x, (2, x.shape[0] // 2, x.shape[1])), axis=0))
    else:  # noqa: RET505
        return tl.reshape(x, (x.shape[1],))
