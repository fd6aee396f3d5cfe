"""y = x w^T + bias, w dequantised: rounded(values * scale + minimum).

Few rows   each step of the product's loop makes its tile of w in registers, from values that were copied to shared
           memory stages ahead, and from scales that were loaded one step ahead
Many rows  w is dequantised a panel of outputs at a time, and multiplied by `matmul`'s kernels. So are float32 rows,
           however few
Bits       those of `matmul`: its steps and parts of K, and its matrix instruction
Spec       reference/quantized_matmul.py    Gradients  of x and bias, in plain torch
Traffic    few rows: values and scales once for each row tile, x once for each column tile
Shapes     x [T, K]   values [N, K] or [N, K / 2]   scales, minimums [N, K / group], at any strides: reading is fastest
           where those of one group lie side by side   y [T, N]   parts [P, T, N] float32
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.triton.launch import architecture, launch
from polyserve_kernels.triton.matmul import add_parts, multiply_into, with_contiguous_columns
from polyserve_kernels.triton.numbers import dot, rounded
from polyserve_kernels.triton.product import tile_place
from polyserve_kernels.triton.tuning import part_channels, quantized_tile_for
from polyserve_kernels.types import QuantizedWeight

_MANY_ROWS = 256  # more are worth a pass that writes the dequantised weight
_PANEL_BYTES = 2**26  # of a dequantised panel: enough tiles for a GPU, and little beside a model
_PANEL_UNIT = 256  # outputs, a multiple of every tile's


@triton.jit
def weight_tile(values, scales, minimums, dtype: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """w [BLOCK_N, BLOCK_K] in dtype, of values [BLOCK_N, BLOCK_K or its half] and scales, minimums [BLOCK_N, groups].

    In float32 a value of 4 bits times a scale of 16 is exact, so that one fma rounds as product and sum do.
    """
    GROUPS: tl.constexpr = scales.shape[1]
    if minimums is not None:
        values = tl.join(values & 15, values >> 4)
    w = tl.reshape(values, (BLOCK_N, GROUPS, BLOCK_K // GROUPS)).to(tl.float32)
    scale = scales.to(tl.float32)[:, :, None]
    if minimums is None:
        w *= scale
    else:
        minimum = minimums.to(tl.float32)[:, :, None]
        w = w * scale + minimum if scales.dtype == tl.float32 else tl.fma(w, scale, minimum)
    return rounded(tl.reshape(w, (BLOCK_N, BLOCK_K)), dtype)


@triton.jit
def load_groups(
    scales_ptr, minimums_ptr, cols, channel, N, K, col_stride, group_stride, GROUP: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Scales and minimums [cols, groups] for the BLOCK_K channels from `channel` on; 0 beyond.  GROUP 0: all of K."""
    if GROUP == 0:
        groups = tl.zeros((1,), dtype=tl.int32)
        there = (cols < N)[:, None]
    else:
        groups = channel // GROUP + tl.arange(0, BLOCK_K // min(GROUP, BLOCK_K))
        there = (cols < N)[:, None] & (groups < K // GROUP)[None, :]
    places = cols.to(tl.int64)[:, None] * col_stride + groups.to(tl.int64)[None, :] * group_stride
    scales, minimums = tl.load(scales_ptr + places, mask=there, other=0.0), None
    if minimums_ptr is not None:
        minimums = tl.load(minimums_ptr + places, mask=there, other=0.0)
    return scales, minimums


@triton.jit(do_not_specialize=["T"])
def _quantized_product_kernel(
    x_ptr, values_ptr, scales_ptr, minimums_ptr, bias_ptr, y_ptr, T, N, K, part_k, x_stride, values_stride,
    col_stride, group_stride, y_stride, GROUP: tl.constexpr, EVEN_K: tl.constexpr, ROW_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of one part's sums, which lie T rows further on in y for each part; of y if there is one part."""
    PACKED: tl.constexpr = 1 if minimums_ptr is None else 2  # values in a byte
    row_tile, col_tile = tile_place(tl.program_id(0), tl.cdiv(T, BLOCK_M), tl.cdiv(N, BLOCK_N), ROW_TILES)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k, byte = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // PACKED)
    part = tl.program_id(1)
    first = tl.multiple_of(part * part_k, 128)  # as parts are cut: half of it still is a multiple of 16 bytes
    length = tl.minimum(K - first, part_k)
    x_ptrs = x_ptr + first + rows.to(tl.int64)[:, None] * x_stride + k[None, :]
    values_ptrs = values_ptr + first // PACKED + cols.to(tl.int64)[:, None] * values_stride + byte[None, :]
    x_mask, values_mask = (rows < T)[:, None], (cols < N)[:, None]
    scales, minimums = load_groups(
        scales_ptr, minimums_ptr, cols, first, N, K, col_stride, group_stride, GROUP, BLOCK_K
    )  # fmt: skip
    y = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, length, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs + start, mask=x_mask, other=0.0)
            values = tl.load(values_ptrs + start // PACKED, mask=values_mask, other=0.0)
        else:
            left = length - start
            x = tl.load(x_ptrs + start, mask=x_mask & (k < left)[None, :], other=0.0)
            in_row = values_mask & (byte < left // PACKED)[None, :]
            values = tl.load(values_ptrs + start // PACKED, mask=in_row, other=0.0)
        w = weight_tile(values, scales, minimums, x_ptr.dtype.element_ty, BLOCK_N, BLOCK_K)
        if GROUP != 0:  # loaded while this step is computed
            scales, minimums = load_groups(
                scales_ptr, minimums_ptr, cols, first + start + BLOCK_K, N, K, col_stride, group_stride, GROUP, BLOCK_K
            )  # fmt: skip
        y = dot(x, tl.trans(w), y)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + (part.to(tl.int64) * T + rows)[:, None] * y_stride + cols[None, :]
    tl.store(y_ptrs, rounded(y, y_ptr.dtype.element_ty), mask=x_mask & (cols < N)[None, :])


@triton.jit
def _dequantize_kernel(
    values_ptr, scales_ptr, minimums_ptr, w_ptr, N, K, values_stride, col_stride, group_stride,
    GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    PACKED: tl.constexpr = 1 if minimums_ptr is None else 2
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * BLOCK_K
    k, byte = first + tl.arange(0, BLOCK_K), first // PACKED + tl.arange(0, BLOCK_K // PACKED)
    rows = cols.to(tl.int64)[:, None]
    inside = (cols < N)[:, None]
    values = tl.load(
        values_ptr + rows * values_stride + byte[None, :], mask=inside & (byte < K // PACKED)[None, :], other=0.0
    )
    scales, minimums = load_groups(
        scales_ptr, minimums_ptr, cols, first, N, K, col_stride, group_stride, GROUP, BLOCK_K
    )  # fmt: skip
    w = weight_tile(values, scales, minimums, w_ptr.dtype.element_ty, BLOCK_N, BLOCK_K)
    tl.store(w_ptr + rows * K + k[None, :], w, mask=inside & (k < K)[None, :])


def _quantized_matmul(x: Tensor, w: QuantizedWeight, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    y = x.new_empty(x.shape[0], w.num_outputs, dtype=out_dtype)
    multiply = _multiply_in_panels if x.shape[0] > _MANY_ROWS or x.dtype == torch.float32 else _multiply
    multiply(y, with_contiguous_columns(x), w, bias, part_channels(w.num_outputs, w.channels))
    return y


def _multiply(y: Tensor, x: Tensor, w: QuantizedWeight, bias: Tensor | None, part_k: int) -> None:
    """y = x w^T + bias, w's tiles dequantised in each step."""
    (num_rows, num_cols), channels = y.shape, w.channels
    num_parts = triton.cdiv(channels, part_k)
    tile = quantized_tile_for(architecture(x.device), num_rows, num_cols)
    sums = y if num_parts == 1 else y.new_empty(num_parts, num_rows, num_cols, dtype=torch.float32)
    launch(
        _quantized_product_kernel, (tile.count(num_rows, num_cols), num_parts),
        x, w.values, w.scales, w.minimums, bias if num_parts == 1 else None, sums,
        num_rows, num_cols, channels, part_k, x.stride(0), w.values.stride(0), *w.scales.stride(), num_cols,
        GROUP=_group(w), **tile.options(channels),
    )  # fmt: skip
    if num_parts > 1:
        add_parts(y, sums, bias)


def _multiply_in_panels(y: Tensor, x: Tensor, w: QuantizedWeight, bias: Tensor | None, part_k: int) -> None:
    """y = x w^T + bias, some of w's rows after others, dequantised before they are multiplied."""
    step = max(1, _PANEL_BYTES // (w.channels * x.itemsize * _PANEL_UNIT)) * _PANEL_UNIT
    for first in range(0, w.num_outputs, step):
        cols = slice(first, first + step)
        multiply_into(y[:, cols], x, dequantized(w, x.dtype, cols), None if bias is None else bias[cols], part_k)


def dequantized(w: QuantizedWeight, dtype: torch.dtype, cols: slice = slice(None)) -> Tensor:
    """Some of the weight's rows, [n, K] in dtype."""
    values, scales = w.values[cols], w.scales[cols]
    minimums = None if w.minimums is None else w.minimums[cols]
    panel = torch.empty(values.shape[0], w.channels, dtype=dtype, device=values.device)
    grid = (triton.cdiv(panel.shape[0], 32), triton.cdiv(w.channels, 128))
    launch(_dequantize_kernel, grid, values, scales, minimums, panel, *panel.shape, values.stride(0), *scales.stride(),
           GROUP=_group(w), BLOCK_N=32, BLOCK_K=128, num_warps=4, num_stages=1)  # fmt: skip
    return panel


def _group(w: QuantizedWeight) -> int:
    """Channels of a group, 0 where it is all of K, so that one compiled kernel is for every K."""
    return 0 if w.scales.shape[1] == 1 else w.group_size


def _gradients(
    saved: tuple[QuantizedWeight, torch.dtype],
    grads: tuple[Tensor | None],
    needed: tuple[bool, bool, bool],
    *,
    out_dtype: torch.dtype,  # noqa: ARG001  (an option of the operation)
) -> tuple[Tensor | None, None, Tensor | None]:
    """dx = dy w,  dbias = sum of dy over rows."""
    w, dtype = saved
    (dy,) = grads
    if dy is None:
        return None, None, None
    return (
        torch.mm(dy.to(dtype), dequantized(w, dtype)) if needed[0] else None,
        None,
        dy.sum(0, dtype=torch.float32).to(dtype) if needed[2] else None,
    )


quantized_matmul = differentiable(_quantized_matmul, _gradients, save=lambda args, _: (args[1], args[0].dtype))
