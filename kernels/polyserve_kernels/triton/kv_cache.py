"""Writing keys and values into their slots of the paged cache, and copying blocks.

Scales   of int8 and float8_e4m3fn, one for each token and head: scale = max |x| / LARGEST, stored = x / scale, rounded
         to the nearest, ties to even; a head of zeros has scale 0
How      a program takes a few heads of one token: it turns and writes heads of q, turns and stores heads of k, or
         stores heads of v, all in one launch. Blocks are copied as bytes: keys, values and scales in one launch
Spec     reference/kv_cache.py, bit for bit
Traffic  q, k and v read once, q and the slots written once; blocks read and written once: the least there is
Shapes   q [T, Hq, D]   k, v [T, Hkv, D]   caches [num_blocks, block_size, Hkv, D]   slot = block * block_size + offset
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.numbers import rounded
from polyserve_kernels.triton.rotary import (
    elements_together,
    head_tiles,
    load_angles,
    load_pairs,
    store_pairs,
    turn,
    turn_heads,
)
from polyserve_kernels.types import BlockCache

_COPY_BYTES, _COPY_WARPS = 8192, 4  # of a program that copies: 64 bytes a thread


@triton.jit
def _largest(x):
    """[HEADS, N] -> [HEADS, 1], the largest magnitude; NaN if one is NaN, whose bits count more than infinity's."""
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(bits, axis=1, keep_dims=True).to(tl.float32, bitcast=True)


@triton.jit
def _as_stored(x, divisor, scales_ptr, dtype: tl.constexpr):
    if scales_ptr is None:
        return rounded(x, dtype)
    number = tl.div_rn(x, tl.broadcast_to(divisor, x.shape))
    if dtype == tl.int8:
        return ((number + 12582912.0) - 12582912.0).to(tl.int8)  # 1.5 * 2**23: beside it floats are whole numbers
    return rounded(number, dtype)


@triton.jit
def _store_heads(
    x_ptr, stored_ptr, scales_ptr, token, slot, first_head, num_heads, x_stride, x_head_stride, cos, sin,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one token, turned if R > 0, into their slot."""
    heads = first_head + tl.arange(0, HEADS)[:, None]
    mask = heads < num_heads
    x_ptrs = x_ptr + token * x_stride + heads * x_head_stride
    at = slot * num_heads + heads
    dtype = stored_ptr.dtype.element_ty
    cols = R + tl.arange(0, REST)[None, :]
    if R > 0:
        a, b = load_pairs(x_ptrs, mask, PAIRS, R, INTERLEAVED)
        a, b = turn(a, b, cos, sin, x_ptr.dtype.element_ty)
        a, b = a.to(tl.float32), b.to(tl.float32)
    if R < D:
        rest = tl.load(x_ptrs + cols, mask=mask & (cols < D), other=0.0).to(tl.float32)
    divisor = tl.full((HEADS, 1), 1.0, tl.float32)
    if scales_ptr is not None:
        scale = tl.zeros((HEADS, 1), tl.float32)
        if R > 0:
            scale = tl.maximum(_largest(a), _largest(b), propagate_nan=tl.PropagateNan.ALL)
        if R < D:
            scale = tl.maximum(scale, _largest(rest), propagate_nan=tl.PropagateNan.ALL)
        scale = tl.div_rn(scale, tl.full((HEADS, 1), 127.0 if dtype == tl.int8 else 448.0, tl.float32))
        divisor = tl.where(scale > 0, scale, 1.0)
        tl.store(scales_ptr + at, scale, mask=mask)
    if R > 0:
        a, b = _as_stored(a, divisor, scales_ptr, dtype), _as_stored(b, divisor, scales_ptr, dtype)
        store_pairs(stored_ptr + at * D, a, b, mask, R, INTERLEAVED)
    if R < D:
        rest = _as_stored(rest, divisor, scales_ptr, dtype)
        tl.store(stored_ptr + at * D + cols, rest, mask=mask & (cols < D))


@triton.jit
def _rotary_write_kv_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, turned_q_ptr, stored_k_ptr, stored_v_ptr, k_scales_ptr, v_scales_ptr,
    slot_ptr, num_slots, q_heads, kv_heads,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, cos_stride, sin_stride, slot_stride,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
    WHOLE: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cos, sin = 1.0, 0.0
    if R > 0:
        cos, sin = load_angles(cos_ptr, sin_ptr, token, cos_stride, sin_stride, PAIRS, R)
    q_tiles, kv_tiles = tl.cdiv(q_heads, HEADS), tl.cdiv(kv_heads, HEADS)
    if tile < q_tiles:
        turn_heads(q_ptr, turned_q_ptr, token, tile * HEADS, q_heads, q_stride, q_head_stride, cos, sin,
                   HEADS, PAIRS, REST, R, D, INTERLEAVED)  # fmt: skip
    else:
        slot = tl.load(slot_ptr + token * slot_stride)
        if (slot >= 0) & (slot < num_slots):
            if tile < q_tiles + kv_tiles:
                _store_heads(k_ptr, stored_k_ptr, k_scales_ptr, token, slot, (tile - q_tiles) * HEADS, kv_heads,
                             k_stride, k_head_stride, cos, sin, HEADS, PAIRS, REST, R, D, INTERLEAVED)  # fmt: skip
            else:
                _store_heads(v_ptr, stored_v_ptr, v_scales_ptr, token, slot, (tile - q_tiles - kv_tiles) * HEADS,
                             kv_heads, v_stride, v_head_stride, cos, sin, HEADS, 1, WHOLE, 0, D, False)  # fmt: skip


def rotary_write_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    cache: BlockCache,
    slot_mapping: Tensor,
    *,
    interleaved: bool,
) -> Tensor:
    turned_q = q.new_empty(q.shape)
    q, k, v = elements_together(q), elements_together(k), elements_together(v)
    num_tokens, q_heads, head_size = q.shape
    kv_heads = k.shape[1]
    angle_strides = (0, 0)
    if cos is not None and sin is not None:
        cos, sin = elements_together(cos), elements_together(sin)
        angle_strides = (cos.stride(0), sin.stride(0))
    tiles = head_tiles(head_size, 0 if cos is None else 2 * cos.shape[1], interleaved=interleaved)
    launch(
        _rotary_write_kv_kernel,
        (num_tokens, tiles.count(q_heads) + 2 * tiles.count(kv_heads)),
        *(q, k, v, cos, sin, turned_q, cache.k, cache.v, cache.k_scales, cache.v_scales, slot_mapping),
        *(cache.k.shape[0] * cache.k.shape[1], q_heads, kv_heads),
        *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *angle_strides, slot_mapping.stride(0)),
        WHOLE=triton.next_power_of_2(max(head_size, 1)),
        num_warps=tiles.num_warps,
        num_stages=1,
        **tiles.constants,
    )
    return turned_q


@triton.jit
def _copy_blocks_kernel(
    k_ptr, v_ptr, k_scales_ptr, v_scales_ptr, pairs_ptr, num_blocks, block_bytes, scale_bytes, row_stride, col_stride,
    BYTES: tl.constexpr,
):  # fmt: skip
    source = tl.load(pairs_ptr + tl.program_id(0).to(tl.int64) * row_stride)
    destination = tl.load(pairs_ptr + tl.program_id(0).to(tl.int64) * row_stride + col_stride)
    if (source >= 0) & (source < num_blocks) & (destination >= 0) & (destination < num_blocks):
        values = tl.program_id(2) == 1
        at = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
        ptr = v_ptr if values else k_ptr
        bytes_ = tl.load(ptr + source * block_bytes + at, mask=at < block_bytes)
        tl.store(ptr + destination * block_bytes + at, bytes_, mask=at < block_bytes)
        if k_scales_ptr is not None:
            ptr = v_scales_ptr if values else k_scales_ptr
            bytes_ = tl.load(ptr + source * scale_bytes + at, mask=at < scale_bytes)
            tl.store(ptr + destination * scale_bytes + at, bytes_, mask=at < scale_bytes)


def copy_blocks(cache: BlockCache, pairs: Tensor) -> None:
    k, v, k_scales, v_scales = (
        None if x is None else x.flatten(1).view(torch.int8) for x in (cache.k, cache.v, cache.k_scales, cache.v_scales)
    )
    assert k is not None  # a cache has keys
    num_blocks, block_bytes = k.shape
    scale_bytes = 0 if k_scales is None else k_scales.shape[1]
    launch(
        _copy_blocks_kernel,
        (pairs.shape[0], triton.cdiv(max(block_bytes, scale_bytes), _COPY_BYTES), 2),
        *(k, v, k_scales, v_scales, pairs),
        *(num_blocks, block_bytes, scale_bytes, *pairs.stride()),
        BYTES=_COPY_BYTES,
        num_warps=_COPY_WARPS,
        num_stages=1,
    )
