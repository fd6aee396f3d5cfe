"""A test of the tests: bugs planted in the products' kernels are caught by the rules of the contracts' tests."""

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch.nn.functional import linear

from polyserve_kernels import ops
from polyserve_kernels.triton import matmul as dense
from polyserve_kernels.triton import quantized_matmul as quant
from polyserve_kernels.triton.launch import INTERPRETED
from polyserve_kernels.triton.product import product_tile
from polyserve_kernels.triton.tuning import ProductTile
from support.quantized import exact, quantized
from support.tolerance import assert_as_good_as_torch

pytestmark = [
    pytest.mark.usefixtures("backend", "poisoned"),
    pytest.mark.parametrize("backend", ["triton"], indirect=True),
    pytest.mark.skipif(not INTERPRETED, reason="a compiled kernel keeps the functions that it was compiled from"),
]

CHANNELS, PART = 200, 128
true_weight_tile, true_load_groups, true_add_parts = quant.weight_tile, quant.load_groups, dense.add_parts


def dense_errors() -> None:
    x, w, bias = torch.randn(130, CHANNELS), torch.randn(40, CHANNELS), torch.randn(40)
    exactly = linear(x.double(), w.double(), bias.double())
    assert_as_good_as_torch(ops.matmul(x, w, bias), linear(x, w, bias), exactly)


def dense_company() -> None:
    x, w = torch.randn(130, CHANNELS), torch.randn(40, CHANNELS)
    assert torch.equal(ops.matmul(x[:1], w), ops.matmul(x, w)[:1])


def quantized_errors() -> None:
    x, w = torch.randn(5, CHANNELS - 8).bfloat16(), quantized(torch.randn(40, CHANNELS - 8), "int4", 32)
    exactly = linear(x.double(), exact(w))
    assert_as_good_as_torch(ops.quantized_matmul(x, w), linear(x, exact(w).bfloat16()), exactly)


@triton.jit
def without_the_last_channel(
    x_ptr, w_ptr, rows, cols, T, N, K, x_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    return product_tile(x_ptr, w_ptr, rows, cols, T, N, K - 1, x_stride, w_stride, BLOCK_M, BLOCK_N, BLOCK_K, False)


@triton.jit
def with_the_halves_of_bytes_changed_over(
    values, scales, minimums, dtype: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    return true_weight_tile((values >> 4) | (values << 4), scales, minimums, dtype, BLOCK_N, BLOCK_K)


@triton.jit
def without_minimums(
    values, scales, minimums, dtype: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    return true_weight_tile(values, scales, minimums * 0.0, dtype, BLOCK_N, BLOCK_K)


@triton.jit
def of_the_next_group(
    scales_ptr, minimums_ptr, cols, channel, N, K, col_stride, group_stride, GROUP: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    return true_load_groups(
        scales_ptr, minimums_ptr, cols, channel + GROUP, N, K, col_stride, group_stride, GROUP, BLOCK_K
    )  # fmt: skip


def in_parts_for_few_rows_only() -> Callable[..., int]:
    parts = iter([PART, CHANNELS])
    return lambda *_: next(parts)


PLANTED = {
    "the last channel is masked": (dense, "product_tile", without_the_last_channel, dense_errors),
    "the last part is dropped": (dense, "add_parts", lambda y, p, b: true_add_parts(y, p[:-1], b), dense_errors),
    "the bias is dropped": (dense, "add_parts", lambda y, p, _: true_add_parts(y, p, None), dense_errors),
    "the last tile is not computed": (ProductTile, "count", lambda *_: 1, dense_errors),
    "few rows are cut into other parts": (dense, "part_channels", in_parts_for_few_rows_only(), dense_company),
    "halves of bytes are changed over": (quant, "weight_tile", with_the_halves_of_bytes_changed_over, quantized_errors),
    "minimums are dropped": (quant, "weight_tile", without_minimums, quantized_errors),
    "scales are the next group's": (quant, "load_groups", of_the_next_group, quantized_errors),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_it_is_caught(bug, monkeypatch):
    place, name, wrong, rule = PLANTED[bug]
    monkeypatch.setattr(dense, "part_channels", lambda *_: PART)  # two parts, so that there is one to drop
    rule()
    monkeypatch.setattr(place, name, wrong)
    with pytest.raises(AssertionError):
        rule()
