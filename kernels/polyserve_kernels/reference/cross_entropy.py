"""Log-probabilities of given tokens, in tiles of the vocabulary: raw logit - log-sum-exp of the raw logits.

Shapes  hidden [T, C]   weight [V, C]   targets [T]   logprobs [T]   top lists [T, N]
"""

import torch
from torch import Tensor

from polyserve_kernels.reference.sampling import LogSumExp, _Best, logit_tiles


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, num_top: int, soft_cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    lse, top = LogSumExp(), _Best(num_top)
    top.start(len(hidden), hidden.device)
    chosen = torch.full(targets.shape, -torch.inf, device=hidden.device)
    for first, raw in logit_tiles(hidden, weight, soft_cap):
        lse.add(raw)
        inside = (targets >= first) & (targets < first + raw.shape[1])
        places = torch.where(inside, targets - first, 0)
        chosen = torch.where(inside, raw.gather(1, places[:, None])[:, 0], chosen)
        if num_top:
            top.add(raw, first, raw)
    total = lse.value()
    return chosen - total, top.ids, top.values - total[:, None]
