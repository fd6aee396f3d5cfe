"""Log-probabilities of given tokens, in tiles of the vocabulary: raw logit - log-sum-exp of the raw logits.

Shapes  hidden [T, C]   weight [V, C]   targets [T]   logprobs [T]   top lists [T, N]
"""

import torch
from torch import Tensor

from polyserve_kernels.reference.sampling import logit_tiles
from polyserve_kernels.reference.vocab_fold import BestSoFar, LogSumExp


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, num_top: int, soft_cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    lse, top = LogSumExp(hidden), BestSoFar(num_top, hidden)
    chosen = torch.full(targets.shape, -torch.inf, device=hidden.device)
    for first, raw in logit_tiles(hidden, weight, soft_cap):
        lse.add(raw)
        top.add(raw, first, raw)
        chosen = target_logits(raw, first, targets, chosen)
    top.sort()
    total = lse.value()
    return chosen - total, top.ids, top.raw - total[:, None]


def target_logits(raw: Tensor, first: int, targets: Tensor, before: Tensor) -> Tensor:
    """Each row's logit of its target, [T], where the tile `raw` [T, n] of ids from `first` on has it; else `before`."""
    inside = (targets >= first) & (targets < first + raw.shape[1])
    place = (targets - first).where(inside, 0)
    return raw.gather(1, place[:, None])[:, 0].where(inside, before)
