"""The dense product: x w^T + bias."""

import pytest
import torch
from torch.nn.functional import linear

from polyserve_kernels import ops
from polyserve_kernels.reference import matmul as reference
from support.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("num_rows", [0, 1, 15, 16, 17, 33, 64, 131])
def test_it_is_as_exact_as_torch_at_any_number_of_rows(num_rows, dtype):
    x, w, bias = (torch.randn(shape).to(dtype) for shape in ((131, 100), (70, 100), (70,)))
    ours = torch.cat((ops.matmul(x[:num_rows], w, bias), ops.matmul(x[num_rows:], w, bias)))
    assert_as_good_as_torch(ours, linear(x, w, bias), linear(x.double(), w.double(), bias.double()))


@pytest.mark.parametrize("num_outputs", [1, 1023, 1024, 1025, 2500])
def test_it_is_as_exact_as_torch_one_less_and_one_more_than_a_weight_tile(num_outputs):
    x, w = torch.randn(50, 600), torch.randn(num_outputs, 600)
    assert reference.weight_tile_rows(600) == 1024
    assert_as_good_as_torch(ops.matmul(x, w), linear(x, w), linear(x.double(), w.double()))


def test_half_precision_is_supported():
    x, w = torch.randn(9, 64).half(), torch.randn(40, 64).half()
    assert_as_good_as_torch(ops.matmul(x, w), linear(x, w), linear(x.double(), w.double()))


def test_float32_sums_of_bfloat16_operands_come_back_unrounded():
    x, w = torch.randn(9, 300).bfloat16(), torch.randn(40, 300).bfloat16()
    sums = ops.matmul(x, w, out_dtype=torch.float32)
    assert_as_good_as_torch(sums, linear(x.float(), w.float()), linear(x.double(), w.double()))
    assert torch.equal(sums.bfloat16(), ops.matmul(x, w))


def test_strides_do_not_matter(dtype):
    x, w = torch.randn(20, 2, 48).to(dtype)[:, 1], torch.randn(48, 30).to(dtype).t()
    assert torch.equal(ops.matmul(x, w), ops.matmul(x.contiguous(), w.contiguous()))


def test_the_result_is_contiguous():
    assert ops.matmul(torch.randn(20, 48), torch.randn(30, 48)).is_contiguous()


def test_arguments_are_left_as_they_were():
    x, w, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    before = [t.clone() for t in (x, w, bias)]
    ops.matmul(x, w, bias)
    assert all(torch.equal(a, b) for a, b in zip((x, w, bias), before, strict=True))


def test_bits_are_those_of_plain_chunks_where_wide_ones_are_not_trusted(monkeypatch, threads, dtype):
    x, w = torch.randn(150, 576).to(dtype), torch.randn(1200, 576).to(dtype)
    wide = ops.matmul(x, w)
    monkeypatch.setattr(reference, "_same_bits", lambda *shape: ())
    assert torch.equal(ops.matmul(x, w), wide)


def test_nan_in_one_row_stays_in_that_row():
    x, w = torch.randn(20, 32), torch.randn(10, 32)
    clean = ops.matmul(x, w)
    x[3] = torch.nan
    dirty = ops.matmul(x, w)
    assert dirty[3].isnan().all()
    rest = torch.arange(20) != 3
    assert torch.equal(dirty[rest], clean[rest])
