"""Gradients of `attention_varlen`, each computed where it is stored: no two programs write to one element.

Formula   p = 2^(score - lse), recomputed tile by tile   dv = p^T dout   dp = dout v^T   delta = sum_j p dp
          ds = p (dp - delta) (derivative of the soft cap)   dq = scale ds k   dk = scale ds^T q
Delta     equals rowsum(dout * out), which is what 16-bit dtypes take: one pass over memory. In float32 that misses the
          error bound: where one key has nearly all of the weight, dp and delta cancel, and the roundings of out and of
          lse stay. So float32 walks the keys once more, for delta = sum p dp / sum p and weight = 1 / sum p
Order     a tile of queries walks its keys in ascending order; a tile of keys walks the query heads of its group, and of
          each the tiles of queries, in ascending order. Tiles begin at a sequence's first token: its company changes
          nothing
Rounding  p and ds to the dtype of q before they are multiplied, as the forward pass does with p; sums are float32
Spec      torch's gradient of reference/attention.py    Source  https://arxiv.org/abs/2307.08691, section 3.1.2
Traffic   q, k, v and dout twice, out once, dq, dk and dv once, and what a tile reads again of the other side from L2
Shapes    M queries and N keys of a tile   delta, weight [T, Hq] float32   parts of a head as in attention_tile.py
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.triton import attention
from polyserve_kernels.triton.attention import find_key_tiles, find_rows, in_powers_of_two
from polyserve_kernels.triton.attention_tile import LOG2E, capped_scores, head_parts, load_rows, score_tile
from polyserve_kernels.triton.launch import architecture, launch
from polyserve_kernels.triton.numbers import dot, rounded
from polyserve_kernels.triton.tuning import BackwardTiles, attention_backward_tuning
from polyserve_kernels.types import Scoring

_DELTA_ROWS = 32


@triton.jit
def _load_heads(ptr, head, first, there, stride, head_stride, D: tl.constexpr, PARTS: tl.constexpr):
    """A tile of one head, part by part, of the tokens from `first` on; 0 where there is none."""
    ptr += first.to(tl.int64) * stride + head.to(tl.int64) * head_stride  # one address, and offsets the same in a loop
    offsets = tl.arange(0, there.shape[0]).to(tl.int64) * stride
    return [load_rows(ptr, offsets, there, ptr.dtype.element_ty, D, part[0], part[1]) for part in PARTS]


@triton.jit
def _store_heads(ptr, x, factor, first, there, stride, D: tl.constexpr, PARTS: tl.constexpr):
    """x * factor, rounded.  factor: a number, or one for each row, [rows, 1]."""
    rows = first.to(tl.int64) + tl.arange(0, there.shape[0])
    for i in tl.static_range(len(PARTS)):
        d = PARTS[i][0] + tl.arange(0, PARTS[i][1])
        value = rounded(x[i] * factor, ptr.dtype.element_ty)
        tl.store(ptr + rows[:, None] * stride + d[None, :], value, mask=there[:, None] & (d < D)[None, :])


@triton.jit
def _load_lse(lse_ptr, rows, there):
    """lse for powers of 2; inf, which makes every weight 0, where there is no query or it sees no key."""
    lse = tl.load(lse_ptr + rows, mask=there, other=float("-inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)


@triton.jit
def _zeros(ROWS: tl.constexpr, PARTS: tl.constexpr):
    return [tl.zeros((ROWS, part[1]), tl.float32) for part in PARTS]


@triton.jit
def _products(a, b):
    """a b^T of two tiles of heads, [X, D] and [Y, D]."""
    product = tl.zeros((a[0].shape[0], b[0].shape[0]), tl.float32)
    for i in tl.static_range(len(a)):
        product = dot(a[i], b[i].T, product)
    return product


@triton.jit
def _add_weighted(sums, weights, x):
    """sums [X, D] + weights [X, Y], rounded, x [Y, D]."""
    weights = rounded(weights, x[0].dtype)
    new = ()
    for i in tl.static_range(len(x)):
        new += (dot(weights, x[i], sums[i]),)
    return new


@triton.jit
def _score_gradients(p, dp, delta, product, scale, cap):
    """The gradient of product, up to the factor of `Scoring.scale`."""
    ds = p * (dp - delta)
    if cap is not None:
        bend = capped_scores(product, scale, cap) / cap
        ds *= 1 - bend * bend
    return ds


@triton.jit
def _delta_kernel(
    out_ptr, dout_ptr, delta_ptr, dout_stride, dout_head_stride, num_tokens,
    D: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """delta of BLOCK tokens of one head, from the result and its gradient."""
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    first = tl.program_id(0) * BLOCK
    tokens = first + tl.arange(0, BLOCK)
    there = tokens < num_tokens
    out = _load_heads(out_ptr, head, first, there, num_heads * D, D, D, PARTS)
    dout = _load_heads(dout_ptr, head, first, there, dout_stride, dout_head_stride, D, PARTS)
    delta = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(len(PARTS)):
        delta += tl.sum(out[i].to(tl.float32) * dout[i].to(tl.float32), 1)
    tl.store(delta_ptr + tokens.to(tl.int64) * num_heads + head, delta, mask=there)


@triton.jit
def _queries_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, weight_ptr, slopes_ptr, bounds_ptr, dq_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, dout_stride, dout_head_stride,
    num_seqs, group, scale, cap, window, factor,
    D: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq of a tile of queries of one head.  dq_ptr: None to write delta and weight (None: not kept, 1) instead."""
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # a sequence's last queries see the most keys: they start first
    _, start, length, first = find_rows(bounds_ptr, tile, num_seqs, 1, BLOCK_M)
    if first >= length:
        return
    q_pos = first + tl.arange(0, BLOCK_M)
    exist = q_pos < length
    q = _load_heads(q_ptr, head, start + first, exist, q_stride, q_head_stride, D, PARTS)
    dout = _load_heads(dout_ptr, head, start + first, exist, dout_stride, dout_head_stride, D, PARTS)
    rows = (start + q_pos).to(tl.int64) * num_heads + head
    lse = _load_lse(lse_ptr, rows, exist)[:, None]
    delta, total = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    if dq_ptr is not None:
        delta = tl.load(delta_ptr + rows, mask=exist, other=0.0)
    slope = None
    if slopes_ptr is not None:
        slope = tl.load(slopes_ptr + head) * LOG2E
    kv_head = head // group
    key_tile, end = find_key_tiles(first, tl.minimum(first + BLOCK_M, length) - 1, window, BLOCK_N)
    dq = _zeros(BLOCK_M, PARTS)
    for key in range(key_tile * BLOCK_N, end * BLOCK_N, BLOCK_N):
        k_pos = key + tl.arange(0, BLOCK_N)
        k = _load_heads(k_ptr, kv_head, start + key, k_pos < length, k_stride, k_head_stride, D, PARTS)
        v = _load_heads(v_ptr, kv_head, start + key, k_pos < length, v_stride, v_head_stride, D, PARTS)
        product = _products(q, k)
        p = tl.exp2(score_tile(product, q_pos[:, None], k_pos[None, :], slope, scale, cap, window) - lse)
        dp = _products(dout, v)
        if dq_ptr is None:
            total += tl.sum(p, 1)
            delta += tl.sum(p * dp, 1)
        else:
            dq = _add_weighted(dq, _score_gradients(p, dp, delta[:, None], product, scale, cap), k)
    if dq_ptr is None:
        weight = 1 / tl.where(total == 0, 1.0, total)
        tl.store(delta_ptr + rows, delta * weight, mask=exist)
        tl.store(weight_ptr + rows, weight, mask=exist)
    else:
        if weight_ptr is not None:
            factor *= tl.load(weight_ptr + rows, mask=exist, other=0.0)[:, None]
        _store_heads(dq_ptr + head * D, dq, factor, start + first, exist, num_heads * D, D, PARTS)


@triton.jit
def _keys_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, weight_ptr, slopes_ptr, bounds_ptr, dk_ptr, dv_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, dout_stride, dout_head_stride,
    num_seqs, group, scale, cap, window, factor,
    D: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys of one head.  A pointer that is None: that one is not computed."""
    kv_head, kv_heads = tl.program_id(1), tl.num_programs(1)
    _, start, length, first = find_rows(bounds_ptr, tl.program_id(0), num_seqs, 1, BLOCK_N)
    if first >= length:
        return
    k_pos = first + tl.arange(0, BLOCK_N)
    exist = k_pos < length
    k = _load_heads(k_ptr, kv_head, start + first, exist, k_stride, k_head_stride, D, PARTS)
    v = _load_heads(v_ptr, kv_head, start + first, exist, v_stride, v_head_stride, D, PARTS)
    end = length  # of the queries that see a key of the tile
    if window is not None:
        end = tl.minimum(length, first + BLOCK_N - 1 + window)
    begin = first // BLOCK_M * BLOCK_M
    num_tiles = tl.cdiv(end - begin, BLOCK_M)
    dk, dv = _zeros(BLOCK_N, PARTS), _zeros(BLOCK_N, PARTS)
    for step in range(group * num_tiles):  # one loop, so that loads are ahead of products from one head to the next
        head = kv_head * group + step // num_tiles
        query = begin + step % num_tiles * BLOCK_M
        q_pos = query + tl.arange(0, BLOCK_M)
        there = q_pos < length
        q = _load_heads(q_ptr, head, start + query, there, q_stride, q_head_stride, D, PARTS)
        dout = _load_heads(dout_ptr, head, start + query, there, dout_stride, dout_head_stride, D, PARTS)
        rows = (start + q_pos).to(tl.int64) * (group * kv_heads) + head
        lse = _load_lse(lse_ptr, rows, there)[None, :]
        slope = None
        if slopes_ptr is not None:
            slope = tl.load(slopes_ptr + head) * LOG2E
        product = _products(k, q)
        p = tl.exp2(score_tile(product, q_pos[None, :], k_pos[:, None], slope, scale, cap, window) - lse)
        if weight_ptr is not None:
            p *= tl.load(weight_ptr + rows, mask=there, other=0.0)[None, :]
        if dv_ptr is not None:
            dv = _add_weighted(dv, p, dout)
        if dk_ptr is not None:
            delta = tl.load(delta_ptr + rows, mask=there, other=0.0)[None, :]
            dk = _add_weighted(dk, _score_gradients(p, _products(v, dout), delta, product, scale, cap), q)
    if dk_ptr is not None:
        _store_heads(dk_ptr + kv_head * D, dk, factor, start + first, exist, kv_heads * D, D, PARTS)
    if dv_ptr is not None:
        _store_heads(dv_ptr + kv_head * D, dv, 1.0, start + first, exist, kv_heads * D, D, PARTS)


def _launch(
    kernel: Any, results: tuple[Tensor | None, ...], inputs: tuple[Tensor, ...], row_sums: tuple[Tensor | None, ...],
    scoring: Scoring, tiles: BackwardTiles,
) -> None:  # fmt: skip
    """inputs: q, k, v, dout, cu_seqlens.  row_sums: lse, delta, weight."""
    *heads, bounds = inputs
    q, k = heads[:2]
    (num_tokens, num_heads, head_size), kv_heads, num_seqs = q.shape, k.shape[1], bounds.shape[0] - 1
    block, programs = (tiles.block_n, kv_heads) if kernel is _keys_kernel else (tiles.block_m, num_heads)
    launch(
        kernel, (num_tokens // block + num_seqs, programs),
        *heads, *row_sums, scoring.alibi_slopes, bounds, *results, *(x.stride(i) for x in heads for i in (0, 1)),
        num_seqs, num_heads // kv_heads, *in_powers_of_two(scoring), scoring.scale,
        D=head_size, PARTS=head_parts(head_size, tiles.part), BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip


def _backward(
    saved: tuple[Any, ...], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k and v.  saved: q, k, v, cu_seqlens, scoring, out (None in float32), lse."""
    q, k, v, bounds, scoring, out, lse = saved
    (dout,) = grads
    if dout is None:
        return (None,) * 5
    q, k, v, dout = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, dout))
    inputs = (q, k, v, dout, bounds.contiguous())
    tuning = attention_backward_tuning(architecture(q.device), q.shape[2], q.dtype)
    row_sums = (lse, torch.empty_like(lse), torch.empty_like(lse) if out is None else None)
    if out is None:
        _launch(_queries_kernel, (None,), inputs, row_sums, scoring, tuning.queries)
    else:
        launch(
            _delta_kernel, (triton.cdiv(q.shape[0], _DELTA_ROWS), q.shape[1]),
            out, dout, row_sums[1], dout.stride(0), dout.stride(1), q.shape[0],
            D=q.shape[2], PARTS=head_parts(q.shape[2], 128), BLOCK=_DELTA_ROWS, num_warps=4, num_stages=1,
        )  # fmt: skip
    dq, dk, dv = (x.new_empty(x.shape) if wanted else None for x, wanted in zip(inputs[:3], needed[:3], strict=True))
    if dq is not None:
        _launch(_queries_kernel, (dq,), inputs, row_sums, scoring, tuning.queries)
    passes = [((dk, dv), tuning.keys)]
    if tuning.values is not None:
        passes = [((dk, None), tuning.keys), ((None, dv), tuning.values)]
    for results, tiles in passes:
        if any(x is not None for x in results):
            _launch(_keys_kernel, results, inputs, row_sums, scoring, tiles)
    return dq, dk, dv, None, None


def _kept(args: tuple[Any, ...], results: tuple[Tensor, ...]) -> tuple[Any, ...]:
    out, lse = results
    return *args, None if out.dtype == torch.float32 else out, lse


attention_varlen = differentiable(attention.attention_varlen, _backward, save=_kept)
