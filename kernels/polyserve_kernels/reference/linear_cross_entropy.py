"""Cross-entropy of hidden states times the vocabulary, with gradients, a tile of ids and some rows at a time.

Forward   the very log-sum-exp and logits of `token_logprobs`
Backward  logits are computed again, tile by tile, and of each tile, with softmax = exp(logit - lse):
          d_logit = grad (softmax - [id = target]) + grad_lse softmax, times 1 - (logit / soft_cap)^2 if there is a cap
          d_hidden += d_logit weight,  d_weight = d_logit^T hidden
Source    recomputing instead of keeping logits: Wijmans et al., https://arxiv.org/abs/2411.09009
Shapes    T rows   V ids   hidden [T, C]   weight [V, C]   targets [T]   d_logits [rows, ids]
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polyserve_kernels.cross_entropy import RowSlopes, chunks, grad_dtype_of, linear_cross_entropy_of
from polyserve_kernels.reference.cross_entropy import target_logits
from polyserve_kernels.reference.sampling import VOCAB_TILE, logit_tiles
from polyserve_kernels.reference.vocab_fold import LogSumExp

ROWS = 512  # at a time: a tile of logits is 16 MiB however many rows there are


def _forward(hidden: Tensor, weight: Tensor, targets: Tensor, soft_cap: float | None) -> tuple[Tensor, Tensor]:
    lse, logits = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(2))
    for rows in chunks(len(hidden), ROWS):
        lse[rows], logits[rows] = _of_rows(hidden[rows], weight, targets[rows], soft_cap)
    return lse, logits


def _of_rows(hidden: Tensor, weight: Tensor, targets: Tensor, soft_cap: float | None) -> tuple[Tensor, Tensor]:
    lse = LogSumExp(hidden)
    logits = torch.full(targets.shape, -torch.inf, device=hidden.device)
    for first, raw in logit_tiles(hidden, weight, soft_cap):
        lse.add(raw)
        logits = target_logits(raw, first, targets, logits)
    return lse.value(), logits


def tile_logits(hidden: Tensor, tile: Tensor, soft_cap: float | None) -> Tensor:
    """Logits [T, ids] float32 of a tile of the vocabulary [ids, C], as in the forward pass."""
    ((_, logits),) = logit_tiles(hidden, tile, soft_cap)
    return logits


def backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    slopes: RowSlopes,
    soft_cap: float | None,
    needed: Sequence[bool],
    *,
    logits_of: Callable[[Tensor, Tensor, float | None], Tensor] = tile_logits,
) -> tuple[Tensor | None, Tensor | None]:
    """logits_of: must give the very logits of the forward pass, whose log-sum-exp slopes has."""
    d_hidden = hidden.new_zeros(hidden.shape, dtype=torch.float32) if needed[0] else None
    d_weight = weight.new_empty(weight.shape, dtype=grad_dtype_of(weight)) if needed[1] else None
    for ids in chunks(len(weight), VOCAB_TILE):
        tile = weight[ids]
        d_tile = tile.new_zeros(tile.shape, dtype=torch.float32)
        for rows in chunks(len(hidden), ROWS):
            logits = logits_of(hidden[rows], tile, soft_cap)
            d_logits = _logit_gradients(logits, targets[rows] - ids.start, slopes.of(rows), soft_cap)
            if d_hidden is not None:
                d_hidden[rows].addmm_(d_logits, tile.float())
            if d_weight is not None:
                d_tile.addmm_(d_logits.t(), hidden[rows].float())
        if d_weight is not None:
            d_weight[ids] = d_tile
    return d_hidden, d_weight


def _logit_gradients(logits: Tensor, targets: Tensor, slopes: RowSlopes, soft_cap: float | None) -> Tensor:
    """Gradients [T, ids] float32 of what hidden times a tile is.  targets: [T], counted from the tile's first id."""
    softmax = torch.exp(logits - slopes.lse[:, None])
    is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    grads = slopes.grad[:, None] * (softmax - is_target.float()) + slopes.grad_lse[:, None] * softmax
    return grads if soft_cap is None else grads * (1 - (logits / soft_cap).square())


linear_cross_entropy = linear_cross_entropy_of(_forward, backward)
