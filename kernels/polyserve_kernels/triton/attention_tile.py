"""What every attention kernel does alike: the scores of a tile of keys, its partial state, and the fold of two states.

State    of a row over some keys: m = max(score), total = sum(2^(score - m)), o = sum(2^(score - m) value)
Units    score_tile gives scores in the unit of `scale`, `cap` and `slopes`; a softmax in powers of two wants all three
         times log2(e)
Bits     a row that sees no key of a tile has the partial (LOWEST, 0, 0) there, which changes no state it is folded into
Source   https://arxiv.org/abs/2205.14135; folding partials: Flash-Decoding (Dao et al., 2023)
Shapes   M rows (queries), N keys; a backward may hold either first: positions and slopes are given as [M, 1] and [1, N]
Parts    a head of D elements is cut into powers of two (80 = 64 + 16), given as a tuple of (from, elements). Values are
         cut finer than keys: a tile's o is folded part by part, and so only a part of it takes registers
"""

import triton
import triton.language as tl

from polyserve_kernels.triton.numbers import dot, rounded, tanh

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
def placed_scores(product, q_pos, k_pos, slopes, scale, cap):
    """Scores of queries at q_pos against keys at k_pos, whether they see them or not.

    product: q k^T, float32.  q_pos, k_pos: int32, of shapes that broadcast to product's.  scale, cap: `capped_scores`.
    slopes: of ALiBi, float32, in q_pos's shape, or None.
    """
    scores = capped_scores(product, scale, cap)
    if slopes is not None:
        scores += slopes * (k_pos.to(tl.float32) - q_pos.to(tl.float32))  # exact below 2^24 tokens
    return scores


@triton.jit
def seen_scores(scores, q_pos, k_pos, window):
    """The scores, and -inf where a key is not seen. A query at -1 sees nothing.  window: in tokens, or None."""
    seen = k_pos <= q_pos
    if window is not None:
        seen = seen & (k_pos > q_pos - window)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def score_tile(product, q_pos, k_pos, slopes, scale, cap, window):
    """The scores of a tile, placed and hidden."""
    return seen_scores(placed_scores(product, q_pos, k_pos, slopes, scale, cap), q_pos, k_pos, window)


@triton.jit
def load_rows(ptr, offsets, there, dtype: tl.constexpr, D: tl.constexpr, FROM: tl.constexpr, SIZE: tl.constexpr):
    """Elements FROM to FROM + SIZE of heads that begin at `offsets`, [rows, SIZE] in dtype; 0 where nothing is."""
    d = FROM + tl.arange(0, SIZE)
    mask = there[:, None] if FROM + SIZE <= D else there[:, None] & (d < D)[None, :]
    x = tl.load(ptr + offsets[:, None] + d[None, :], mask=mask, other=0.0)
    return x if x.dtype == dtype else rounded(x.to(tl.float32), dtype)


@triton.jit
def find_keys(k_pos, start, num_keys, table_ptr, num_blocks, BLOCK_SIZE: tl.constexpr):
    """Rows of the keys at k_pos, int64, and which of them there are: packed from `start` on, or in a table's blocks."""
    there = k_pos < num_keys
    if table_ptr is None:
        rows = (start + k_pos).to(tl.int64)
    else:
        block = tl.load(table_ptr + k_pos // BLOCK_SIZE, mask=there, other=-1)
        there = (block >= 0) & (block < num_blocks)
        rows = block.to(tl.int64) * BLOCK_SIZE + k_pos % BLOCK_SIZE
    return rows, there


@triton.jit
def tile_weights(
    q, q_pos, slopes, k_ptr, k_scales_ptr, v_scales_ptr, rows, there, k_pos, all_seen,
    k_stride, scale_stride, scale, cap, window, D: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """m and total [M] of the rows over one tile's keys, and what its values are weighted with, [M, N] in q's dtype.

    q: the parts of the rows' heads.  q_pos: [M].  rows, there, k_pos: [N].  all_seen: no row has a hidden key, which
    changes nothing but the time.  Pointers: of the key head.
    """
    product = tl.zeros((q_pos.shape[0], k_pos.shape[0]), tl.float32)
    for i in tl.static_range(len(PARTS)):
        k = load_rows(k_ptr, rows * k_stride, there, q[i].dtype, D, PARTS[i][0], PARTS[i][1])
        product = dot(q[i], k.T, product)
    if k_scales_ptr is not None:
        product *= tl.load(k_scales_ptr + rows * scale_stride, mask=there, other=0.0)[None, :]
    scores = placed_scores(product, q_pos[:, None], k_pos[None, :], slopes, scale, cap)
    if not all_seen:
        scores = seen_scores(scores, q_pos[:, None], k_pos[None, :], window)
    m = tl.maximum(tl.max(scores, 1), LOWEST)
    p = tl.exp2(scores - m[:, None])
    total = tl.sum(p, 1)
    if v_scales_ptr is not None:
        p *= tl.load(v_scales_ptr + rows * scale_stride, mask=there, other=0.0)[None, :]
    return m, total, rounded(p, q[0].dtype)


@triton.jit
def tile_output(p, v_ptr, rows, there, v_stride, D: tl.constexpr, FROM: tl.constexpr, SIZE: tl.constexpr):
    """Elements FROM to FROM + SIZE of o of the rows over one tile's keys, [M, SIZE]."""
    v = load_rows(v_ptr, rows * v_stride, there, p.dtype, D, FROM, SIZE)
    return dot(p, v, tl.zeros((p.shape[0], SIZE), tl.float32))


@triton.jit
def merge_maxima(m_a, m_b):
    """m of a state over the keys of both, and what total and o of each are multiplied with."""
    m = tl.maximum(m_a, m_b)
    return m, tl.exp2(m_a - m), tl.exp2(m_b - m)


@triton.jit
def merge_sums(a, weight_a, b, weight_b):
    """total or o of a state over the keys of both. If b saw no key (total = o = 0, m lowest), it is exactly a."""
    return tl.fma(a, weight_a, b * weight_b)


@triton.jit
def finished(o, total, dtype: tl.constexpr):
    """A row's result: o / total, and 0 where it saw no key."""
    return rounded(o / tl.where(total == 0, 1.0, total), dtype)


def head_parts(size: int, largest: int) -> tuple[tuple[int, int], ...]:
    """A head of `size` elements as (from, elements): powers of two, 16 to `largest`; only the last may go beyond."""
    parts, at = [], 0
    while at < size:
        part = largest
        while part > max(16, size - at):
            part //= 2
        parts.append((at, part))
        at += part
    return tuple(parts)
