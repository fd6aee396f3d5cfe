"""Rotary positions: of a head's R leading elements each pair (a, b) turns to (a cos - b sin, b cos + a sin), float32.

Pairs    half layout: elements i and i + R / 2      interleaved: elements 2i and 2i + 1
How      a program takes a few heads of one token, q's and k's in one launch. Gradients turn back: sin is negated
Spec     reference/rotary.py    Source  https://arxiv.org/abs/2104.09864
Traffic  q and k read and written once, a token's cos and sin once for each few heads
Shapes   q [T, Hq, D]   k [T, Hkv, D]   cos, sin [T, R / 2]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.numbers import rounded

_TILE_ELEMENTS, _NUM_WARPS = 1024, 2  # of a program; a thread has 16 bytes of bfloat16 of either half of a head


@triton.jit
def load_angles(cos_ptr, sin_ptr, token, cos_stride, sin_stride, PAIRS: tl.constexpr, R: tl.constexpr):
    """A token's cos and sin, [1, PAIRS]."""
    cols = tl.arange(0, PAIRS)[None, :]
    cos = tl.load(cos_ptr + token * cos_stride + cols, mask=cols < R // 2, other=0.0)
    return cos, tl.load(sin_ptr + token * sin_stride + cols, mask=cols < R // 2, other=0.0)


@triton.jit
def load_pairs(head_ptrs, mask, PAIRS: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The pairs' first and second elements, float32 [HEADS, PAIRS].  head_ptrs, mask [HEADS, 1]."""
    if INTERLEAVED:
        cols = tl.arange(0, 2 * PAIRS)[None, :]
        x = tl.load(head_ptrs + cols, mask=mask & (cols < R), other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(x, (x.shape[0], PAIRS, 2)))
    else:
        cols = tl.arange(0, PAIRS)[None, :]
        first = tl.load(head_ptrs + cols, mask=mask & (cols < R // 2), other=0.0).to(tl.float32)
        second = tl.load(head_ptrs + R // 2 + cols, mask=mask & (cols < R // 2), other=0.0).to(tl.float32)
    return first, second


@triton.jit
def store_pairs(head_ptrs, first, second, mask, R: tl.constexpr, INTERLEAVED: tl.constexpr):
    """first and second, in the dtype of what they are stored in, back in the pairs' places."""
    if INTERLEAVED:
        cols = tl.arange(0, 2 * first.shape[1])[None, :]
        both = tl.reshape(tl.join(first, second), (first.shape[0], 2 * first.shape[1]))
        tl.store(head_ptrs + cols, both, mask=mask & (cols < R))
    else:
        cols = tl.arange(0, first.shape[1])[None, :]
        tl.store(head_ptrs + cols, first, mask=mask & (cols < R // 2))
        tl.store(head_ptrs + R // 2 + cols, second, mask=mask & (cols < R // 2))


@triton.jit
def turn(a, b, cos, sin, dtype: tl.constexpr):
    return rounded(a * cos - b * sin, dtype), rounded(b * cos + a * sin, dtype)


@triton.jit
def turn_heads(
    x_ptr, y_ptr, token, first_head, num_heads, x_stride, x_head_stride, cos, sin,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one token, turned, into y [T, num_heads, D]. What is behind the pairs is copied."""
    heads = first_head + tl.arange(0, HEADS)[:, None]
    mask = heads < num_heads
    x_ptrs = x_ptr + token * x_stride + heads * x_head_stride
    y_ptrs = y_ptr + (token * num_heads + heads) * D
    if R > 0:
        a, b = load_pairs(x_ptrs, mask, PAIRS, R, INTERLEAVED)
        a, b = turn(a, b, cos, sin, y_ptr.dtype.element_ty)
        store_pairs(y_ptrs, a, b, mask, R, INTERLEAVED)
    if R < D:
        cols = R + tl.arange(0, REST)[None, :]
        tl.store(y_ptrs + cols, tl.load(x_ptrs + cols, mask=mask & (cols < D)), mask=mask & (cols < D))


@triton.jit
def _rotary_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, turned_q_ptr, turned_k_ptr, q_heads, kv_heads,
    q_stride, q_head_stride, k_stride, k_head_stride, cos_stride, sin_stride, BACK: tl.constexpr,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cos, sin = load_angles(cos_ptr, sin_ptr, token, cos_stride, sin_stride, PAIRS, R)
    if BACK:
        sin = -sin
    q_tiles = tl.cdiv(q_heads, HEADS)
    if tile < q_tiles:
        turn_heads(q_ptr, turned_q_ptr, token, tile * HEADS, q_heads, q_stride, q_head_stride, cos, sin,
                   HEADS, PAIRS, REST, R, D, INTERLEAVED)  # fmt: skip
    else:
        turn_heads(k_ptr, turned_k_ptr, token, (tile - q_tiles) * HEADS, kv_heads, k_stride, k_head_stride, cos, sin,
                   HEADS, PAIRS, REST, R, D, INTERLEAVED)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HeadTiles:
    """How heads are dealt to programs, and where in a head its pairs end."""

    heads: int  # of a tile
    num_warps: int
    constants: dict[str, int | bool]

    def count(self, num_heads: int) -> int:
        return -(-num_heads // self.heads)


def head_tiles(head_size: int, turning: int, *, interleaved: bool) -> HeadTiles:
    """turning: R, 0 where nothing turns."""
    heads = max(1, _TILE_ELEMENTS // triton.next_power_of_2(max(head_size, 1)))
    constants = {
        "HEADS": heads,
        "PAIRS": triton.next_power_of_2(max(turning // 2, 1)),
        "REST": triton.next_power_of_2(max(head_size - turning, 1)),
        "R": turning,
        "D": head_size,
        "INTERLEAVED": interleaved,
    }
    return HeadTiles(heads, _NUM_WARPS, constants)


def elements_together(x: Tensor) -> Tensor:
    """x with its last dimension contiguous: x itself, as a rule."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _turned(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool, back: bool) -> tuple[Tensor, Tensor]:
    turned_q, turned_k = q.new_empty(q.shape), k.new_empty(k.shape)
    q, k, cos, sin = (elements_together(x) for x in (q, k, cos, sin))
    num_tokens, q_heads, head_size = q.shape
    kv_heads = k.shape[1]
    tiles = head_tiles(head_size, 2 * cos.shape[1], interleaved=interleaved)
    grid = (num_tokens, tiles.count(q_heads) + tiles.count(kv_heads))
    strides = (*q.stride()[:2], *k.stride()[:2], cos.stride(0), sin.stride(0))
    launch(_rotary_kernel, grid, q, k, cos, sin, turned_q, turned_k, q_heads, kv_heads, *strides, BACK=back,
           num_warps=tiles.num_warps, num_stages=1, **tiles.constants)  # fmt: skip
    return turned_q, turned_k


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> tuple[Tensor, Tensor]:
    return _turned(q, k, cos, sin, interleaved=interleaved, back=False)


def _rotary_backward(
    saved: tuple[Tensor, Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool], *, interleaved: bool
) -> tuple[Tensor | None, ...]:
    cos, sin = saved
    given = next(grad for grad in grads if grad is not None)
    none = given[:, :0]  # no heads
    dq, dk = (grad if wanted and grad is not None else none for grad, wanted in zip(grads, needed, strict=False))
    dq, dk = _turned(dq, dk, cos, sin, interleaved=interleaved, back=True)
    return *(dx if dx.shape[1] else None for dx in (dq, dk)), None, None


rotary = differentiable(_rotary, _rotary_backward, save=lambda args, _: args[2:], results=2)
