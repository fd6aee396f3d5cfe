"""Gradients of norms, in float32. x is what was normed: with a residual, residual + x.

rms      x^ = x / sqrt(mean(x^2) + eps)    g = dy * weight    dx = (g - x^ mean(g x^)) / sqrt(mean(x^2) + eps)
layer    the same of x - mean(x), and g less its mean         dweight = sum(dy * x^), dbias = sum(dy) over the rows
add_     dx += what comes through residual + x itself; it is the gradient of both terms
How      a program takes a group of rows, reads each once into registers while the next one is on its way, and keeps the
         group's sums for weight and bias there (column_sum.py). Of the forward pass only x and weight are kept: means
         are computed again. Of rows too long for registers a second kernel sums the weights' gradients by columns
Traffic  x, dy and dx once each, with a residual also both gradients of the sum: the least there is.  Of long rows x and
         dy are read three or four times
Shapes   x, dy, dx [T, C]   weight, bias [C]   statistics [T, 2] float32: mean, 1 / deviation
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.column_sum import Groups, column_sums, groups_of
from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.numbers import rounded
from polyserve_kernels.triton.rows import Rows, RowTile, column_sum, row_sum, row_tile, row_tuning, rows_of

_PIECE = RowTile(rows=1, block=2048, num_warps=8)  # a piece of a row that is too long for registers
_COLUMNS = RowTile(rows=2, block=512, num_warps=4)  # of one program that sums weights' gradients of such rows


@triton.jit
def _norm_backward_kernel(
    x_ptr, weight_ptr, dy_ptr, through_ptr, dx_ptr, dresidual_ptr, partial_ptr, inner, outer_stride, inner_stride,
    T, C, group_size, eps,
    LAYER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, FOLD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    cols = tl.arange(0, BLOCK)[None, :]
    inside = cols < C
    dweight, dbias = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    stop = min(T, (group + 1) * group_size)
    for first in tl.range(group * group_size, stop, ROWS, num_stages=STAGES):
        rows = first + tl.arange(0, ROWS)[:, None]
        mask = (rows < T) & inside
        at = rows.to(tl.int64) * C + cols
        x_at = (rows // inner).to(tl.int64) * outer_stride + (rows % inner).to(tl.int64) * inner_stride + cols
        x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if LAYER:
            x = tl.where(inside, x - row_sum(x, FOLD) / C, 0.0)
        rstd = tl.rsqrt(row_sum(x * x, FOLD) / C + eps)
        x *= rstd
        dweight += dy * x
        dbias += dy
        dy *= tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)  # not held: registers are short
        dx = -x * (row_sum(dy * x, FOLD) / C)
        if LAYER:
            dy -= row_sum(dy, FOLD) / C
        dx = (dy + dx) * rstd
        if through_ptr is not None:
            dx += tl.load(through_ptr + at, mask=mask, other=0.0)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + at, dx, mask=mask)
        if dx_ptr is not None:
            tl.store(dx_ptr + at, rounded(dx, dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        _store_partial(partial_ptr, group, tl.arange(0, BLOCK), C, dweight, dbias, LAYER)


@triton.jit
def _store_partial(partial_ptr, group, cols, C, dweight, dbias, LAYER: tl.constexpr):
    partial_ptr += group.to(tl.int64) * C * (2 if LAYER else 1) + cols
    tl.store(partial_ptr, column_sum(dweight), mask=cols < C)
    if LAYER:
        tl.store(partial_ptr + C, column_sum(dbias), mask=cols < C)


@triton.jit
def _long_norm_backward_kernel(
    x_ptr, weight_ptr, dy_ptr, through_ptr, dx_ptr, dresidual_ptr, statistics_ptr, inner, outer_stride, inner_stride,
    C, eps, LAYER: tl.constexpr, BLOCK: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    x_ptr += (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    at = row.to(tl.int64) * C
    cols = tl.arange(0, BLOCK)[None, :]
    mean = tl.zeros((1, 1), tl.float32)
    if LAYER:
        total = tl.zeros((1, BLOCK), tl.float32)
        for start in range(0, C, BLOCK):
            total += tl.load(x_ptr + start + cols, mask=start + cols < C, other=0.0).to(tl.float32)
        mean = row_sum(total, FOLD) / C
    squares, slopes = tl.zeros((1, BLOCK), tl.float32), tl.zeros((1, BLOCK), tl.float32)
    products = tl.zeros((1, BLOCK), tl.float32)
    for start in range(0, C, BLOCK):
        x, slope = _long_piece(x_ptr, weight_ptr, dy_ptr + at, mean, start + cols, C)
        squares += x * x
        slopes += slope
        products += slope * x
    rstd = tl.rsqrt(row_sum(squares, FOLD) / C + eps)
    mean_slope, mean_product = row_sum(slopes, FOLD) / C, row_sum(products, FOLD) / C * rstd
    for start in range(0, C, BLOCK):
        inside = start + cols < C
        x, slope = _long_piece(x_ptr, weight_ptr, dy_ptr + at, mean, start + cols, C)
        if LAYER:
            slope -= mean_slope
        dx = (slope - x * rstd * mean_product) * rstd
        if through_ptr is not None:
            dx += tl.load(through_ptr + at + start + cols, mask=inside, other=0.0)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + at + start + cols, dx, mask=inside)
        if dx_ptr is not None:
            tl.store(dx_ptr + at + start + cols, rounded(dx, dx_ptr.dtype.element_ty), mask=inside)
    if statistics_ptr is not None:
        statistics_ptrs = statistics_ptr + 2 * row.to(tl.int64) + tl.zeros((1, 1), tl.int32)
        tl.store(statistics_ptrs, mean)
        tl.store(statistics_ptrs + 1, rstd)


@triton.jit
def _long_piece(x_ptr, weight_ptr, dy_ptr, mean, cols, C):
    """x - mean and dy * weight"""
    inside = cols < C
    x = tl.where(inside, tl.load(x_ptr + cols, mask=inside, other=0.0).to(tl.float32) - mean, 0.0)
    slope = tl.load(dy_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    return x, slope * tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _long_weight_kernel(
    x_ptr, dy_ptr, statistics_ptr, partial_ptr, inner, outer_stride, inner_stride, T, C, group_size,
    LAYER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dweight, dbias = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(group * group_size, min(T, (group + 1) * group_size), ROWS):
        rows = first + tl.arange(0, ROWS)[:, None]
        mask = (rows < T) & (cols < C)[None, :]
        x_at = (rows // inner).to(tl.int64) * outer_stride + (rows % inner).to(tl.int64) * inner_stride
        x = tl.load(x_ptr + x_at + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + rows.to(tl.int64) * C + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(statistics_ptr + 2 * rows.to(tl.int64), mask=rows < T, other=0.0)
        rstd = tl.load(statistics_ptr + 2 * rows.to(tl.int64) + 1, mask=rows < T, other=0.0)
        dweight += dy * ((x - mean) * rstd)
        dbias += dy
    _store_partial(partial_ptr, group, cols, C, dweight, dbias, LAYER)


Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Norm:
    x: Tensor  # what was normed, [..., C]
    weight: Tensor
    eps: float
    layer: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which gradients are computed."""

    x: torch.dtype | None  # None: not this one
    residual: bool
    weights: bool


def of_x(
    saved: tuple[Any, ...],
    grads: Gradients,
    needed: Sequence[bool],
    *,
    eps: float,
    out_dtype: torch.dtype,  # noqa: ARG001  (dy has it)
) -> Gradients:
    """Gradients of (x, weight[, bias]).  saved: x, weight, whether it is a LayerNorm."""
    x, weight, layer = saved
    (dy,) = grads
    if dy is None:
        return (None,) * len(needed)
    wanted = Wanted(x.dtype if needed[0] else None, residual=False, weights=any(needed[1:]))
    dx, _, *dweights = _gradients(Norm(x, weight, eps, layer), dy, None, wanted)
    return dx, *dweights


def of_sum(
    saved: tuple[Any, ...],
    grads: Gradients,
    needed: Sequence[bool],
    *,
    eps: float,
    out_dtype: torch.dtype,  # noqa: ARG001  (dy has it)
) -> Gradients:
    """Gradients of (x, residual, weight[, bias]).  saved: the sum, weight, x's dtype, whether it is a LayerNorm."""
    total, weight, x_dtype, layer = saved
    dy, through = grads
    if dy is None:
        return None if through is None else through.to(x_dtype), through, *(None for _ in needed[2:])
    one = x_dtype == torch.float32  # then both gradients are one tensor
    wanted = Wanted(
        None if one or not needed[0] else x_dtype,
        residual=needed[1] or (one and needed[0]),
        weights=any(needed[2:]),
    )
    dx, dresidual, *dweights = _gradients(Norm(total, weight, eps, layer), dy, through, wanted)
    return dresidual if one else dx, dresidual, *dweights


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What comes in through the results, and what goes out; None where there is none or it is not wanted."""

    dy: Tensor
    through: Tensor | None  # the gradient of residual + x
    dx: Tensor | None
    dresidual: Tensor | None
    partial: Tensor | None  # [groups, weight and bias]


def _gradients(norm: Norm, dy: Tensor, through: Tensor | None, wanted: Wanted) -> Gradients:
    """Of x, of the residual, of the weight, and of the bias if there is one."""
    channels, device = norm.x.shape[-1], norm.x.device
    num_weights = 2 if norm.layer else 1
    rows, tuning = rows_of(norm.x), row_tuning(device)
    long = channels * dy.itemsize > tuning.backward_max_bytes
    short = row_tile(channels, elements=tuning.backward_tile_elements)
    tile = _COLUMNS if long else short
    num_column_blocks = triton.cdiv(channels, tile.block)  # more than one of long rows only
    most = tuning.backward_elements // (tile.rows * tile.block * max(num_column_blocks, 1))
    groups = groups_of(rows.num, most=max(1, most), multiple=tile.rows)
    buffers = _Buffers(
        dy.contiguous(),
        None if through is None else through.contiguous(),
        None if wanted.x is None else torch.empty(norm.x.shape, dtype=wanted.x, device=device),
        torch.empty(norm.x.shape, dtype=torch.float32, device=device) if wanted.residual else None,
        torch.empty(groups.num, num_weights * channels, device=device) if wanted.weights else None,
    )
    (_long_rows if long else _short_rows)(norm, rows, buffers, groups, tile)
    if buffers.partial is None:
        return buffers.dx, buffers.dresidual, *(None for _ in range(num_weights))
    sums = column_sums(buffers.partial, norm.weight.dtype).view(num_weights, channels)
    return buffers.dx, buffers.dresidual, *sums


def _short_rows(norm: Norm, rows: Rows, buffers: _Buffers, groups: Groups, tile: RowTile) -> None:
    launch(
        _norm_backward_kernel,
        (groups.num,),
        rows.x,
        norm.weight.contiguous(),
        buffers.dy,
        buffers.through,
        buffers.dx,
        buffers.dresidual,
        buffers.partial,
        rows.inner,
        rows.outer_stride,
        rows.inner_stride,
        rows.num,
        rows.x.shape[-1],
        groups.size,
        norm.eps,
        LAYER=norm.layer,
        ROWS=tile.rows,
        BLOCK=tile.block,
        FOLD=tile.fold,
        STAGES=2 if tile.rows == 1 else 1,
        **tile.options,
    )


def _long_rows(norm: Norm, rows: Rows, buffers: _Buffers, groups: Groups, tile: RowTile) -> None:
    channels = rows.x.shape[-1]
    statistics = torch.empty(rows.num, 2, device=rows.x.device)
    launch(
        _long_norm_backward_kernel,
        (rows.num,),
        rows.x,
        norm.weight.contiguous(),
        buffers.dy,
        buffers.through,
        buffers.dx,
        buffers.dresidual,
        statistics,
        rows.inner,
        rows.outer_stride,
        rows.inner_stride,
        channels,
        norm.eps,
        LAYER=norm.layer,
        BLOCK=_PIECE.block,
        FOLD=_PIECE.fold,
        **_PIECE.options,
    )
    if buffers.partial is None:
        return
    launch(
        _long_weight_kernel,
        (groups.num, triton.cdiv(channels, tile.block)),
        rows.x,
        buffers.dy,
        statistics,
        buffers.partial,
        rows.inner,
        rows.outer_stride,
        rows.inner_stride,
        rows.num,
        channels,
        groups.size,
        LAYER=norm.layer,
        ROWS=tile.rows,
        BLOCK=tile.block,
        **tile.options,
    )
