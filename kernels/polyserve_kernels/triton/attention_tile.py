"""What every attention kernel does alike: the scores of a tile of keys, its partial state, and the fold of two states.

State    of a row over some keys: m = max(score), l = sum(2^(score - m)), o = sum(2^(score - m) value)
Units    score_tile gives scores in the unit of `scale`, `cap` and `slopes`; a softmax in powers of two wants all three
         times log2(e)
Bits     a row that sees no key of a tile has the partial (LOWEST, 0, 0) there, which changes no state it is folded into
Source   https://arxiv.org/abs/2205.14135; folding partials: Flash-Decoding (Dao et al., 2023)
Shapes   M rows (queries), N keys; a backward may hold either first: positions and slopes are given as [M, 1] and [1, N]
"""

import triton
import triton.language as tl

from polyserve_kernels.triton.numbers import tanh

LOWEST = tl.constexpr(-3.4028234663852886e38)  # in place of -inf, so that a difference of maxima is never nan
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def capped_scores(product, scale, cap):
    """product * scale, or with a soft cap (None: none) cap * tanh(product * scale), where scale is divided by the cap.

    Its derivative by the product is scale, or with a cap scale * cap * (1 - (result / cap)^2).
    """
    scores = product * scale
    if cap is not None:
        scores = cap * tanh(scores)
    return scores


@triton.jit
def score_tile(product, q_pos, k_pos, slopes, scale, cap, window):
    """Scores of queries at q_pos against keys at k_pos; -inf where a key is not seen.

    product: q k^T, float32.  q_pos, k_pos: int32, of shapes that broadcast to product's; a query at -1 sees nothing.
    slopes: of ALiBi, float32, in q_pos's shape, or None.  scale, cap: see `capped_scores`.  window: in tokens, or None.
    """
    scores = capped_scores(product, scale, cap)
    if slopes is not None:
        scores += slopes * (k_pos.to(tl.float32) - q_pos.to(tl.float32))  # exact below 2^24 tokens
    seen = k_pos <= q_pos
    if window is not None:
        seen = seen & (k_pos > q_pos - window)
    return tl.where(seen, scores, float("-inf"))
