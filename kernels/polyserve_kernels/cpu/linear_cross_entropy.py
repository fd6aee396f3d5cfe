"""The loss under the whole vocabulary: forward as `token_logprobs`, gradients as in `reference/`."""

from functools import partial

from torch import Tensor

from polyserve_kernels.cpu.sampling import head_logits, scores
from polyserve_kernels.cross_entropy import linear_cross_entropy_of
from polyserve_kernels.reference.linear_cross_entropy import backward


def _forward(hidden: Tensor, weight: Tensor, targets: Tensor, soft_cap: float | None) -> tuple[Tensor, Tensor]:
    lse, logits, _, _ = scores(hidden, weight, targets, num_top=0, soft_cap=soft_cap)
    return lse, logits


def _tile_logits(hidden: Tensor, tile: Tensor, soft_cap: float | None) -> Tensor:
    return head_logits(hidden, tile, edits=None, temperature=None, soft_cap=soft_cap)[0]


linear_cross_entropy = linear_cross_entropy_of(_forward, partial(backward, logits_of=_tile_logits))
