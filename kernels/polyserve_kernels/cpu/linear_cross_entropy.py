"""The loss under the whole vocabulary: forward as `token_logprobs`, gradients a tile of ids and some rows at a time.

Backward  of a tile the logits are computed once more, and their gradients as they lie and turned around:
          d_logit = grad (softmax - [id = target]) + grad_lse softmax, softmax = exp(logit - lse), and the cap's slope
          d_hidden += d_logit weight,  d_weight = d_logit^T hidden, summed in float32; bfloat16 operands meet d_logit
          rounded to bfloat16, which has float32's range, and others meet it as it is
Memory    tiles are computed in the same few tensors: fresh ones took a quarter of the time, in faults of their pages.
          d_weight, which is fresh, has large ones
Shapes    T rows   V ids   hidden [T, C]   weight [V, C]   of a tile: logits [ids, rows], because d_weight's product
          runs along rows
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polyserve_kernels import memory
from polyserve_kernels.cpu.library import LogitGradient, call
from polyserve_kernels.cpu.matmul import multiply_into
from polyserve_kernels.cpu.sampling import scores
from polyserve_kernels.cross_entropy import RowSlopes, chunks, grad_dtype_of, linear_cross_entropy_of

ROWS, IDS = 512, 1024  # of a tile, at most: its logits are 2 MiB


class _Scratch:
    """Tensors by name, whose memory is that of the first one of each name, which is the largest."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        size = math.prod(shape)
        if name not in self._memory:
            self._memory[name] = torch.empty(size, dtype=dtype)
        return self._memory[name][:size].view(shape)

    def turned(self, name: str, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        return self.get(name, matrix.shape[1], matrix.shape[0], dtype=dtype).copy_(matrix.t())


def _forward(hidden: Tensor, weight: Tensor, targets: Tensor, soft_cap: float | None) -> tuple[Tensor, Tensor]:
    lse, logits, _, _ = scores(hidden, weight, targets, num_top=0, soft_cap=soft_cap)
    return lse, logits


def _backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, slopes: RowSlopes, soft_cap: float | None, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    dtype = torch.bfloat16 if hidden.dtype == torch.bfloat16 else torch.float32
    d_hidden = hidden.new_zeros(hidden.shape, dtype=torch.float32) if needed[0] else None
    d_weight = memory.zeros(weight.shape, grad_dtype_of(weight)) if needed[1] else None
    scratch = _Scratch()
    for ids in chunks(len(weight), IDS):
        tile = weight[ids]
        turned_tile = scratch.turned("tile", tile, dtype)
        d_tile = scratch.get("d_tile", *tile.shape).zero_()
        for rows in chunks(len(hidden), ROWS):
            x = hidden[rows]
            logits = multiply_into(scratch.get("logits", len(tile), len(x)), tile, x)
            d_logits, turned = _gradients(logits, targets[rows] - ids.start, slopes.of(rows), soft_cap, dtype, scratch)
            if d_hidden is not None:
                d_hidden[rows] += multiply_into(scratch.get("d_rows", *x.shape), turned, turned_tile)
            if d_weight is not None:  # rows are turned anew for each tile: kept, they would be all of hidden again
                d_tile += multiply_into(scratch.get("d_ids", *tile.shape), d_logits, scratch.turned("x", x, dtype))
        if d_weight is not None:
            d_weight[ids] = d_tile
    return d_hidden, d_weight


def _gradients(
    logits: Tensor,
    targets: Tensor,
    slopes: RowSlopes,
    soft_cap: float | None,
    dtype: torch.dtype,
    scratch: _Scratch,
) -> tuple[Tensor, Tensor]:
    """Of the logits [ids, rows], and the same turned around.  targets: [rows], counted from the tile's first id."""
    num_ids, num_rows = logits.shape
    found = scratch.get("gradients", num_ids, num_rows, dtype=dtype)
    turned = scratch.get("turned", num_rows, num_ids, dtype=dtype)
    call(
        "ps_logit_gradient", LogitGradient, logits=logits, lse=slopes.lse, grad=slopes.grad.contiguous(),
        grad_lse=slopes.grad_lse.contiguous(), targets=targets.float(), gradients=found, turned=turned, V=num_ids,
        T=num_rows, soft_cap=soft_cap, dtype=dtype,
    )  # fmt: skip
    return found, turned


linear_cross_entropy = linear_cross_entropy_of(_forward, _backward)
