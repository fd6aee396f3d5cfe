"""The loss under the whole vocabulary: forward as `token_logprobs`, gradients a tile of ids and some rows at a time.

Backward  of a tile the logits are computed once more, and become their own gradients in place:
          d_logit = grad (softmax - [id = target]) + grad_lse softmax, softmax = exp(logit - lse), and the cap's slope
          d_hidden += d_logit weight,  d_weight = d_logit^T hidden, summed in float32; bfloat16 operands meet d_logit
          rounded to bfloat16, which has float32's range, and others meet it as it is
Shapes    T rows   V ids   hidden [T, C]   weight [V, C]   of a tile: logits [ids, rows], because d_weight's product
          runs along rows
"""

from collections.abc import Sequence

import torch
from torch import Tensor

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
            d_logits = _to_gradients(logits, targets[rows] - ids.start, slopes.of(rows), soft_cap).to(dtype)
            if d_hidden is not None:
                d_hidden[rows] += multiply(d_logits.t().contiguous(), turned_tile, None, out_dtype=torch.float32)
            if d_weight is not None:
                turned_hidden = hidden[rows].t().to(dtype).contiguous()  # anew: kept, it would be all of hidden again
                d_tile += multiply(d_logits, turned_hidden, None, out_dtype=torch.float32)
        if d_weight is not None:
            d_weight[ids] = d_tile
    return d_hidden, d_weight


def _to_gradients(logits: Tensor, targets: Tensor, slopes: RowSlopes, soft_cap: float | None) -> Tensor:
    """Gradients of the products [ids, rows], in their place.  targets: [rows], counted from the tile's first id."""
    slope_of_cap = None
    if soft_cap is not None:
        logits.div_(soft_cap).tanh_()
        slope_of_cap = 1 - logits.square()
        logits.mul_(soft_cap)
    logits.sub_(slopes.lse).exp_().mul_(slopes.grad + slopes.grad_lse)
    inside = ((targets >= 0) & (targets < len(logits))).nonzero()[:, 0]
    logits[targets[inside], inside] -= slopes.grad[inside]
    return logits if slope_of_cap is None else logits.mul_(slope_of_cap)


linear_cross_entropy = linear_cross_entropy_of(_forward, _backward)
