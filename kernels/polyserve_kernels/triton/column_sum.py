"""Gradients of what all rows share, a weight or bias, without atomics: groups of rows are summed, then the groups.

How      rows are dealt to groups in runs of equal length; a kernel writes each group's sums, `column_sums` adds them in
         one fixed order. How many groups there are follows from the number of rows and the table: two runs agree
Traffic  4 G C bytes written and read, beside what the kernel moves for its rows
Shapes   partial [G, C] float32
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.numbers import rounded
from polyserve_kernels.triton.rows import column_sum

_BLOCK_G, _BLOCK_C = 32, 32


@dataclass(frozen=True, slots=True)
class Groups:
    num: int
    size: int  # rows of each, fewer in the last


def groups_of(num_rows: int, *, most: int, multiple: int = 1) -> Groups:
    """At most `most` groups of `multiple` rows or a multiple of that."""
    size = multiple * triton.cdiv(num_rows, multiple * most)
    return Groups(triton.cdiv(num_rows, size) if size else 0, size)


@triton.jit
def _column_sum_kernel(partial_ptr, sums_ptr, G, C, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr):
    groups = tl.arange(0, BLOCK_G)[:, None]
    cols = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    sums = tl.zeros((BLOCK_G, BLOCK_C), tl.float32)
    for start in range(0, G, BLOCK_G):
        rows = start + groups
        sums += tl.load(partial_ptr + rows * C + cols[None, :], mask=(rows < G) & (cols < C)[None, :], other=0.0)
    tl.store(sums_ptr + cols, rounded(column_sum(sums), sums_ptr.dtype.element_ty), mask=cols < C)


def column_sums(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """[G, C] contiguous -> [C]"""
    num_groups, channels = partial.shape
    sums = torch.empty(channels, dtype=dtype, device=partial.device)
    launch(
        _column_sum_kernel,
        (triton.cdiv(channels, _BLOCK_C),),
        partial,
        sums,
        num_groups,
        channels,
        BLOCK_G=_BLOCK_G,
        BLOCK_C=_BLOCK_C,
        num_warps=4,
        num_stages=1,
    )
    return sums
