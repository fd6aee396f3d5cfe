"""y = x w^T + bias.

How       a program computes one tile of y, the largest that still gives every multiprocessor work (`tuning.py`)
Parts     where even the narrowest tiles of N are too few, and K is long, K is cut into equal parts, and an element is
          (p0 + p1) + ... of their sums. For few rows each part is a program of its own, and a second kernel adds; where
          rows give work enough, a program sums its tile's parts one after another
Bits      the parts depend on N and K alone, so a row's sums have one order at every number of rows
Spec      reference/matmul.py    Gradients  plain torch, which is cuBLAS on a GPU
Traffic   w once for each row tile, x once for each column tile, both mostly from the L2 cache, and y once
Shapes    x [T, K]   w [N, K]   bias [N]   y [T, N]   parts [P, T, N] float32
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.triton.launch import architecture, launch
from polyserve_kernels.triton.numbers import rounded
from polyserve_kernels.triton.product import product_tile, tile_place
from polyserve_kernels.triton.tuning import PRODUCT_PROGRAMS, part_channels, product_tile_for

_ADD_COLUMNS = 512  # of a program that adds parts


@triton.jit(do_not_specialize=["T"])
def _product_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, T, N, K, part_k, x_stride, w_stride, y_stride, ALL_PARTS: tl.constexpr,
    ROW_TILES: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of y; unless ALL_PARTS, a tile of one part's sums, which lie T rows further on in y for each part."""
    row_tile, col_tile = tile_place(tl.program_id(0), tl.cdiv(T, BLOCK_M), tl.cdiv(N, BLOCK_N), ROW_TILES)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    if ALL_PARTS:
        y = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for first in range(0, K, part_k):
            y += product_tile(
                x_ptr + first, w_ptr + first, rows, cols, T, N, tl.minimum(K - first, part_k), x_stride, w_stride,
                BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K,
            )  # fmt: skip
    else:
        first = part * part_k
        y = product_tile(
            x_ptr + first, w_ptr + first, rows, cols, T, N, tl.minimum(K - first, part_k), x_stride, w_stride,
            BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K,
        )  # fmt: skip
    if bias_ptr is not None:
        y += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + (part.to(tl.int64) * T + rows)[:, None] * y_stride + cols[None, :]
    tl.store(y_ptrs, rounded(y, y_ptr.dtype.element_ty), mask=(rows < T)[:, None] & (cols < N)[None, :])


@triton.jit(do_not_specialize=["T"])
def _add_parts_kernel(parts_ptr, bias_ptr, y_ptr, T, N, y_stride, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    y = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        y += tl.load(parts_ptr + (part * T.to(tl.int64) + row) * N + cols, mask=mask, other=0.0)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * y_stride + cols, rounded(y, y_ptr.dtype.element_ty), mask=mask)


def multiply_into(y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, part_k: int) -> None:
    """y = x w^T + bias, in parts of part_k channels.  y, x and w: rows at any stride, columns contiguous."""
    (num_rows, num_cols), channels = y.shape, x.shape[1]
    num_parts = max(1, triton.cdiv(channels, part_k))
    tile = product_tile_for(architecture(x.device), x.dtype, num_rows, num_cols, in_parts=num_parts > 1)
    num_tiles = tile.count(num_rows, num_cols)
    sizes = (num_rows, num_cols, channels, part_k, x.stride(0), w.stride(0))
    options = tile.options(channels)
    if num_parts == 1 or num_tiles >= PRODUCT_PROGRAMS:
        launch(_product_kernel, (num_tiles, 1), x, w, bias, y, *sizes, y.stride(0), ALL_PARTS=num_parts > 1, **options)
        return
    parts = y.new_empty(num_parts, num_rows, num_cols, dtype=torch.float32)
    launch(_product_kernel, (num_tiles, num_parts), x, w, None, parts, *sizes, num_cols, ALL_PARTS=False, **options)
    add_parts(y, parts, bias)


def add_parts(y: Tensor, parts: Tensor, bias: Tensor | None) -> None:
    """y = the sum of parts in ascending order, + bias."""
    num_parts, num_rows, num_cols = parts.shape
    grid = (num_rows, triton.cdiv(num_cols, _ADD_COLUMNS))
    launch(_add_parts_kernel, grid, parts, bias, y, num_rows, num_cols, y.stride(0),
           PARTS=num_parts, BLOCK=_ADD_COLUMNS, num_warps=4, num_stages=1)  # fmt: skip


def with_contiguous_columns(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _matmul(x: Tensor, w: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    y = x.new_empty(x.shape[0], w.shape[0], dtype=out_dtype)
    multiply_into(y, with_contiguous_columns(x), with_contiguous_columns(w), bias, part_channels(*w.shape))
    return y


def _gradients(
    saved: tuple[Tensor | None, Tensor | None, torch.dtype],
    grads: tuple[Tensor | None],
    needed: tuple[bool, bool, bool],
    *,
    out_dtype: torch.dtype,  # noqa: ARG001  (an option of the operation)
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx = dy w,  dw = dy^T x,  dbias = sum of dy over rows."""
    x, w, dtype = saved
    if grads[0] is None:
        return None, None, None
    dy = grads[0].to(dtype)
    return (
        torch.mm(dy, w) if needed[0] and w is not None else None,
        torch.mm(dy.t(), x) if needed[1] and x is not None else None,
        grads[0].sum(0, dtype=torch.float32).to(dtype) if needed[2] else None,
    )


def _needed_for_gradients(
    args: tuple[Tensor, Tensor, Tensor | None],
    _: tuple[Tensor, ...],
) -> tuple[Tensor | None, Tensor | None, torch.dtype]:
    x, w, _bias = args
    return x if w.requires_grad else None, w if x.requires_grad else None, x.dtype


matmul = differentiable(_matmul, _gradients, save=_needed_for_gradients)
