"""The loss under the whole vocabulary: forward as `token_logprobs`, gradients a tile of ids and some rows at a time.

Backward  of a tile the logits are computed once more, and their gradients as they lie and turned around:
          d_logit = grad (softmax - [id = target]) + grad_lse softmax, softmax = exp(logit - lse), and the cap's slope
          d_hidden += d_logit weight,  d_weight = d_logit^T hidden, summed in float32; bfloat16 operands meet d_logit
          rounded to bfloat16, which has float32's range, and others meet it as it is
Shapes    T rows   V ids   hidden [T, C]   weight [V, C]   of a tile: logits [ids, rows], because d_weight's product
          runs along rows
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from polyserve_kernels.cpu.library import LogitGradient, call
from polyserve_kernels.cpu.matmul import multiply
from polyserve_kernels.cpu.sampling import scores
from polyserve_kernels.cross_entropy import RowSlopes, chunks, grad_dtype_of, linear_cross_entropy_of

ROWS, IDS = 512, 1024  # of a tile, at most: its logits are 2 MiB


def _forward(hidden: Tensor, weight: Tensor, targets: Tensor, soft_cap: float | None) -> tuple[Tensor, Tensor]:
    lse, logits, _, _ = scores(hidden, weight, targets, num_top=0, soft_cap=soft_cap)
    return lse, logits


def _backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, slopes: RowSlopes, soft_cap: float | None, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    dtype = torch.bfloat16 if hidden.dtype == torch.bfloat16 else torch.float32
    d_hidden = hidden.new_zeros(hidden.shape, dtype=torch.float32) if needed[0] else None
    d_weight = weight.new_empty(weight.shape, dtype=grad_dtype_of(weight)) if needed[1] else None
    for ids in chunks(len(weight), IDS):
        tile = weight[ids]
        turned_tile = tile.t().to(dtype).contiguous()
        d_tile = tile.new_zeros(tile.shape, dtype=torch.float32)
        for rows in chunks(len(hidden), ROWS):
            logits = multiply(tile, hidden[rows], None, out_dtype=torch.float32)
            d_logits, turned = _gradients(logits, targets[rows] - ids.start, slopes.of(rows), soft_cap, dtype)
            if d_hidden is not None:
                d_hidden[rows] += multiply(turned, turned_tile, None, out_dtype=torch.float32)
            if d_weight is not None:
                turned_hidden = hidden[rows].t().to(dtype).contiguous()  # anew: kept, it would be all of hidden again
                d_tile += multiply(d_logits, turned_hidden, None, out_dtype=torch.float32)
        if d_weight is not None:
            d_weight[ids] = d_tile
    return d_hidden, d_weight


def _gradients(
    logits: Tensor, targets: Tensor, slopes: RowSlopes, soft_cap: float | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Of the logits [ids, rows], and the same turned around.  targets: [rows], counted from the tile's first id."""
    num_ids, num_rows = logits.shape
    found, turned = logits.new_empty(num_ids, num_rows, dtype=dtype), logits.new_empty(num_rows, num_ids, dtype=dtype)
    call(
        "ps_logit_gradient", LogitGradient, logits=logits, lse=slopes.lse, grad=slopes.grad.contiguous(),
        grad_lse=slopes.grad_lse.contiguous(), targets=targets.float(), gradients=found, turned=turned, V=num_ids,
        T=num_rows, soft_cap=soft_cap, dtype=dtype,
    )  # fmt: skip
    return found, turned


linear_cross_entropy = linear_cross_entropy_of(_forward, _backward)
