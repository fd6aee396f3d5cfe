"""top-k, top-p, min-p and typical-p, and the draw from what they leave, on tokens that are sorted by probability.

p          probability after edits and temperature, over the whole vocabulary; sorted by value, then by smaller id
top-k      the first k
top-p      the shortest beginning whose probability reaches top_p of what top-k left
min-p      those with p >= min_p * p[0]
typical-p  of what is left, renormalised to q with entropy H: the tokens with the smallest |-log q - H| that together
           reach typical_p, and those as near as the last of them
draw       inverse CDF in sorted order with one uniform number

The first three keep a beginning of the list, so they can often be settled on its first K tokens, the survivors of
`ops.head_topk`, as if all V had been seen: `certain` says where. To make both ways give one answer bit for bit,
everything is in float64 and every sum runs from the first token on (`cumsum`): what follows adds nothing to what came
before, where `sum` would group it differently for K tokens and for V.

Shapes  R rows   K tokens of each, K <= V
Source  top-p: https://arxiv.org/abs/1904.09751   min-p: https://arxiv.org/abs/2407.01082
        typical-p: https://arxiv.org/abs/2202.00666
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyserve.sampling_params import SamplingParams

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of R rows, [R] each."""

    top_k: Integers  # V: no limit
    top_p: Floats
    min_p: Floats
    typical_p: Floats

    @staticmethod
    def of(params: Sequence[SamplingParams], *, vocab_size: int) -> "Filters":
        return Filters(
            top_k=np.array([min(p.top_k, vocab_size) if p.top_k > 0 else vocab_size for p in params]),
            top_p=np.array([p.top_p for p in params]),
            min_p=np.array([p.min_p for p in params]),
            typical_p=np.array([p.typical_p for p in params]),
        )


def has_filters(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0 or params.typical_p < 1.0


def draw(
    values: NDArray[np.float32], lse: NDArray[np.float32], filters: Filters, uniforms: Floats, *, vocab_size: int
) -> tuple[Integers, Flags]:
    """Filter the first K tokens of each row and draw one of what is left.

    values: [R, K], edited logits over temperature, sorted.  lse: [R], log-sum-exp of all V of them.
    uniforms: [R] in (0, 1).
    Returns the drawn index [R] into the row, and `certain` [R]: true where no token after the K could have been kept.
    """
    logp = values.astype(np.float64) - lse.astype(np.float64)[:, None]
    p = np.exp(logp)
    kept, certain = _keep_beginning(p, filters, vocab_size=vocab_size)
    weights = np.where(np.arange(p.shape[1]) < kept[:, None], p, 0.0)
    typical = np.flatnonzero(filters.typical_p < 1.0)
    if len(typical):
        chosen = _typical(logp[typical], weights[typical], kept[typical], filters.typical_p[typical])
        weights[typical] = np.where(chosen, weights[typical], 0.0)
    cdf = np.cumsum(weights, axis=1)
    target = uniforms * cdf[:, -1]
    return (cdf <= target[:, None]).sum(axis=1), certain


def _keep_beginning(p: Floats, filters: Filters, *, vocab_size: int) -> tuple[Integers, Flags]:
    """How many of the first tokens top-k, top-p and min-p leave, 1 or more; and whether no other could be kept."""
    num_rows, width = p.shape
    cdf = np.cumsum(p, axis=1)
    limit = np.minimum(filters.top_k, width)
    limited, nucleus = filters.top_k < vocab_size, filters.top_p < 1.0
    mass = np.where(limited, cdf[np.arange(num_rows), limit - 1], 1.0)  # of what top-k leaves
    before = np.zeros_like(cdf)  # probability of the tokens before each one
    before[:, 1:] = cdf[:, :-1]
    in_nucleus = np.where(nucleus, (before < (filters.top_p * mass)[:, None]).sum(axis=1), width)
    above = (p >= (filters.min_p * p[:, 0])[:, None]).sum(axis=1)
    kept = np.maximum(np.minimum(np.minimum(limit, in_nucleus), above), 1)

    ends_in_top_k = filters.top_k <= width
    ends_in_nucleus = nucleus & ~limited & (cdf[:, -1] >= filters.top_p)
    ends_above = (above < width) & ~(nucleus & limited)  # the nucleus of a top-k that reaches further is not known here
    return kept, ends_in_top_k | ends_in_nucleus | ends_above


def _typical(logp: Floats, weights: Floats, kept: Integers, typical_p: Floats) -> Flags:
    """Which tokens locally typical sampling leaves of the first `kept` ones of each row."""
    total = np.cumsum(weights, axis=1)[:, -1:]
    q, inside = weights / total, np.arange(logp.shape[1]) < kept[:, None]
    surprise = np.log(total) - logp  # -log q
    entropy = np.cumsum(q * np.where(q > 0, surprise, 0.0), axis=1)[:, -1:]
    distance = np.where(inside, np.abs(surprise - entropy), np.inf)
    order = np.argsort(distance, axis=1, kind="stable")
    reached = np.cumsum(np.take_along_axis(q, order, axis=1), axis=1)
    last = np.minimum((reached < typical_p[:, None]).sum(axis=1), kept - 1)
    furthest = np.take_along_axis(np.take_along_axis(distance, order, axis=1), last[:, None], axis=1)
    chosen: Flags = inside & (distance <= furthest)
    return chosen
