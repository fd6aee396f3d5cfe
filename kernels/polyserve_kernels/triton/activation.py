"""Activations and their gradients in one pass over memory, in float32, one rounding at the end.

silu     x s(x)      slope  s(x) (1 + x (1 - s(x)))               s(t) = 1 / (1 + exp(-t))
gelu     x s(2 z)    slope  s(2 z) (1 + 2 x z' (1 - s(2 z)))      z = sqrt(2 / pi) (x + 0.044715 x^3): the tanh form
gated    y = act(gate) up    dgate = dy up act'(gate)    dup = dy act(gate)
How      a bias's gradient is summed while dx is computed, by groups of rows (column_sum.py)
Spec     reference/activation.py    Source  https://arxiv.org/abs/1606.08415, section 2; https://arxiv.org/abs/2002.05202
Traffic  what comes in and goes out once each: the least there is
Shapes   x, y [T, F]; gated: x [T, 2F], gate and up side by side   bias [F]
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.triton.column_sum import column_sums, groups_of
from polyserve_kernels.triton.launch import architecture, launch
from polyserve_kernels.triton.numbers import rounded
from polyserve_kernels.triton.rows import column_sum
from polyserve_kernels.triton.tuning import ACTIVATIONS, ActivationTuning, tuned

_GELU_1, _GELU_3 = (
    tl.constexpr(0.7978845608028654),
    tl.constexpr(0.7978845608028654 * 0.044715),
)  # z = x (1st + 3rd x^2)


@triton.jit
def _activated(x, GELU: tl.constexpr):
    return x / (1 + tl.exp(-2 * x * (_GELU_1 + _GELU_3 * x * x) if GELU else -x))


@triton.jit
def _activated_with_slope(x, GELU: tl.constexpr):
    t = 2 * x * (_GELU_1 + _GELU_3 * x * x) if GELU else x
    dt = 2 * (_GELU_1 + 3 * _GELU_3 * x * x) if GELU else 1.0
    e = tl.exp(-tl.abs(t))
    r = 1 / (1 + e)  # s is r or e r, and 1 - s the other one: neither is found by subtraction
    s = tl.where(t < 0, e * r, r)
    return x * s, s + x * dt * (e * r * r)


@triton.jit
def _bias_gelu_kernel(x_ptr, bias_ptr, y_ptr, x_stride, F, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < F
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + cols, mask=mask).to(tl.float32)
    tl.store(y_ptr + row * F + cols, rounded(_activated(x, True), y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _bias_gelu_backward_kernel(
    x_ptr, bias_ptr, dy_ptr, dx_ptr, partial_ptr, x_stride, dy_stride, T, F, group_size,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < F
    bias = tl.zeros((BLOCK,), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(group * group_size, min(T, (group + 1) * group_size), ROWS):
        rows = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        mask = (rows < T) & inside[None, :]
        x = tl.load(x_ptr + rows * x_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + rows * dy_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        _, slope = _activated_with_slope(x + bias[None, :], True)
        dx = dy * slope
        sums += dx
        tl.store(dx_ptr + rows * F + cols[None, :], rounded(dx, dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        tl.store(partial_ptr + group.to(tl.int64) * F + cols, column_sum(sums), mask=inside)


@triton.jit
def _gated_kernel(x_ptr, y_ptr, x_stride, F, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < F
    gate = tl.load(x_ptr + row * x_stride + cols, mask=mask).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + F + cols, mask=mask).to(tl.float32)
    tl.store(y_ptr + row * F + cols, rounded(_activated(gate, GELU) * up, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gated_backward_kernel(x_ptr, dy_ptr, dx_ptr, x_stride, dy_stride, F, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < F
    gate = tl.load(x_ptr + row * x_stride + cols, mask=mask).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + F + cols, mask=mask).to(tl.float32)
    dy = tl.load(dy_ptr + row * dy_stride + cols, mask=mask).to(tl.float32)
    activated, slope = _activated_with_slope(gate, GELU)
    dx_ptr += row * 2 * F + cols
    tl.store(dx_ptr, rounded(dy * up * slope, dx_ptr.dtype.element_ty), mask=mask)
    tl.store(dx_ptr + F, rounded(dy * activated, dx_ptr.dtype.element_ty), mask=mask)


def _tuning(x: Tensor, width: int) -> ActivationTuning:
    """The table's, with blocks no wider than the rows are."""
    tuning, least = tuned(ACTIVATIONS, architecture(x.device)), triton.next_power_of_2(max(width, 1))
    return replace(tuning, block=min(tuning.block, least), backward_block=min(tuning.backward_block, least))


def _by_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    (num_rows, width), tuning = x.shape, _tuning(x, x.shape[1])
    x, y = _by_rows(x), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = (num_rows, triton.cdiv(width, tuning.block))
    bias = None if bias is None else bias.contiguous()
    launch(_bias_gelu_kernel, grid, x, bias, y, x.stride(0), width, BLOCK=tuning.block,
           num_warps=tuning.num_warps, num_stages=1)  # fmt: skip
    return y


def _bias_gelu_backward(
    saved: tuple[Any, ...], grads: tuple[Tensor | None, ...], needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    (x, bias), (dy,) = saved, grads
    if dy is None:
        return None, None
    (num_rows, width), tuning = x.shape, _tuning(x, x.shape[1])
    num_blocks = triton.cdiv(width, tuning.backward_block)
    groups = groups_of(num_rows, most=max(1, tuning.programs // max(num_blocks, 1)), multiple=tuning.backward_rows)
    x, dy, dx = _by_rows(x), _by_rows(dy), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial = torch.empty(groups.num, width, device=x.device) if needed[1] else None
    bias = None if bias is None else bias.contiguous()
    launch(_bias_gelu_backward_kernel, (groups.num, num_blocks), x, bias, dy, dx, partial, x.stride(0), dy.stride(0),
           num_rows, width, groups.size, ROWS=tuning.backward_rows, BLOCK=tuning.backward_block,
           num_warps=tuning.num_warps, num_stages=1)  # fmt: skip
    return dx, None if partial is None else column_sums(partial, x.dtype)


def _gated(x: Tensor, *, gelu: bool) -> Tensor:
    width = x.shape[1] // 2
    tuning = _tuning(x, width)
    x, y = _by_rows(x), torch.empty(x.shape[0], width, dtype=x.dtype, device=x.device)
    grid = (x.shape[0], triton.cdiv(width, tuning.block))
    launch(_gated_kernel, grid, x, y, x.stride(0), width, GELU=gelu, BLOCK=tuning.block,
           num_warps=tuning.num_warps, num_stages=1)  # fmt: skip
    return y


def _gated_backward(
    saved: tuple[Any, ...],
    grads: tuple[Tensor | None, ...],
    needed: Sequence[bool],  # noqa: ARG001  (there is only x)
    *,
    gelu: bool,
) -> tuple[Tensor | None]:
    (x,), (dy,) = saved, grads
    if dy is None:
        return (None,)
    width = x.shape[1] // 2
    tuning = _tuning(x, width)
    x, dy, dx = _by_rows(x), _by_rows(dy), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = (x.shape[0], triton.cdiv(width, tuning.block))
    launch(_gated_backward_kernel, grid, x, dy, dx, x.stride(0), dy.stride(0), width, GELU=gelu, BLOCK=tuning.block,
           num_warps=tuning.num_warps, num_stages=1)  # fmt: skip
    return (dx,)


bias_gelu = differentiable(_bias_gelu, _bias_gelu_backward, save=lambda args, _: args)
_gated_activation = differentiable(_gated, _gated_backward, save=lambda args, _: args)


def gated_silu(x: Tensor) -> Tensor:
    y: Tensor = _gated_activation(x, gelu=False)
    return y


def gated_gelu(x: Tensor) -> Tensor:
    y: Tensor = _gated_activation(x, gelu=True)
    return y
