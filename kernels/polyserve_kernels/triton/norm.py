"""Norms over the last dimension, in float32.

rms     y = x / sqrt(mean(x^2) + eps) * weight
layer   y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias
add_    the same of residual' = residual + x, which is returned as well
How      a row is read once and stays in registers; one longer than the table's limit is read again for each of its sums
Spec     reference/norm.py    Gradients  norm_backward.py
Traffic  x and y once each, with a residual also residual and residual': the least there is
Shapes   x, residual [..., C]   weight, bias [C]   T rows
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.triton import norm_backward
from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.numbers import rounded
from polyserve_kernels.triton.rows import RowTile, row_sum, row_tile, row_tuning, rows_of

_PIECE = RowTile(rows=1, block=2048, num_warps=8)  # a piece of a row that is too long for registers


@triton.jit
def _norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, total_ptr, inner, outer_stride, inner_stride, T, C, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    inside = cols < C
    mask = (rows < T) & inside
    at = rows.to(tl.int64) * C + cols
    x_at = (rows // inner).to(tl.int64) * outer_stride + (rows % inner).to(tl.int64) * inner_stride + cols
    x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        x = tl.load(residual_ptr + at, mask=mask, other=0.0) + x
        tl.store(total_ptr + at, x, mask=mask)
    if bias_ptr is not None:
        x = tl.where(inside, x - row_sum(x, FOLD) / C, 0.0)
    y = x * tl.rsqrt(row_sum(x * x, FOLD) / C + eps) * tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, rounded(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _long_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, total_ptr, inner, outer_stride, inner_stride, C, eps,
    BLOCK: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    x_ptr += (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    at = row.to(tl.int64) * C
    cols = tl.arange(0, BLOCK)[None, :]
    mean = 0.0
    if bias_ptr is not None:
        total = tl.zeros((1, BLOCK), tl.float32)
        for start in range(0, C, BLOCK):
            total += _piece(x_ptr, residual_ptr, at, start + cols, C)
        mean = row_sum(total, FOLD) / C
    squares = tl.zeros((1, BLOCK), tl.float32)
    for start in range(0, C, BLOCK):
        x = tl.where(start + cols < C, _piece(x_ptr, residual_ptr, at, start + cols, C) - mean, 0.0)
        squares += x * x
    rstd = tl.rsqrt(row_sum(squares, FOLD) / C + eps)
    for start in range(0, C, BLOCK):
        inside = start + cols < C
        x = _piece(x_ptr, residual_ptr, at, start + cols, C)
        if residual_ptr is not None:
            tl.store(total_ptr + at + start + cols, x, mask=inside)
        y = (x - mean) * rstd * tl.load(weight_ptr + start + cols, mask=inside, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + start + cols, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + at + start + cols, rounded(y, y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _piece(x_ptr, residual_ptr, residual_at, cols, C):
    x = tl.load(x_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        x = tl.load(residual_ptr + residual_at + cols, mask=cols < C, other=0.0) + x
    return x


def _norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, *, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """y, and residual + x if there is a residual."""
    channels = x.shape[-1]
    rows, tuning = rows_of(x), row_tuning(x.device)
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    total = None if residual is None else torch.empty(x.shape, dtype=torch.float32, device=x.device)
    tensors = (
        rows.x,
        None if residual is None else residual.contiguous(),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        y,
        total,
    )
    strides = (rows.inner, rows.outer_stride, rows.inner_stride)
    if channels > tuning.max_channels:
        tile, grid = _PIECE, (rows.num,)
        launch(_long_norm_kernel, grid, *tensors, *strides, channels, eps, BLOCK=tile.block, FOLD=tile.fold,
               **tile.options)  # fmt: skip
    else:
        tile = row_tile(channels, elements=tuning.tile_elements)
        grid = (triton.cdiv(rows.num, tile.rows),)
        launch(_norm_kernel, grid, *tensors, *strides, rows.num, channels, eps, ROWS=tile.rows, BLOCK=tile.block,
               FOLD=tile.fold, **tile.options)  # fmt: skip
    return y, total


def _rms_norm(x: Tensor, weight: Tensor, *, eps: float, out_dtype: torch.dtype) -> Tensor:
    return _norm(x, None, weight, None, eps=eps, out_dtype=out_dtype)[0]


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, out_dtype: torch.dtype) -> Tensor:
    return _norm(x, None, weight, bias, eps=eps, out_dtype=out_dtype)[0]


def _add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    return _norm(x, residual, weight, None, eps=eps, out_dtype=out_dtype)


def _add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    return _norm(x, residual, weight, bias, eps=eps, out_dtype=out_dtype)


rms_norm = differentiable(_rms_norm, norm_backward.of_x, save=lambda args, _: (*args, False))
layer_norm = differentiable(_layer_norm, norm_backward.of_x, save=lambda args, _: (*args[:2], True))
add_rms_norm = differentiable(
    _add_rms_norm,
    norm_backward.of_sum,
    save=lambda args, results: (results[1], args[2], args[0].dtype, False),
    results=2,
)
add_layer_norm = differentiable(
    _add_layer_norm,
    norm_backward.of_sum,
    save=lambda args, results: (results[1], args[2], args[0].dtype, True),
    results=2,
)
