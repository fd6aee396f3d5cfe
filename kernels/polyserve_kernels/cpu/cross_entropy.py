"""Log-probabilities of given tokens (kernels/csrc/head.cpp).   hidden [T, C]   weight [V, C]   targets [T]"""

from torch import Tensor

from polyserve_kernels.cpu.sampling import scores


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, num_top: int, soft_cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    lse, chosen, top_ids, top_raw = scores(hidden, weight, targets, num_top=num_top, soft_cap=soft_cap)
    return chosen - lse, top_ids, top_raw - lse[:, None]
