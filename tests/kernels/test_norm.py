"""RMSNorm and LayerNorm, with and without the residual sum."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyserve_kernels import ops
from support.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("backend", "poisoned")

EPS = 1e-5


def plain_rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 2048])
def test_rms_norm_is_as_exact_as_torch(channels, dtype):
    x, weight = (3 * torch.randn(7, channels)).to(dtype), torch.randn(channels).to(dtype)
    exact = plain_rms(x.double(), weight.double())
    assert_as_good_as_torch(ops.rms_norm(x, weight, eps=EPS), plain_rms(x, weight), exact)


@pytest.mark.parametrize("channels", [2, 63, 64, 65, 2048])
def test_layer_norm_is_as_exact_as_torch(channels, dtype):
    x, weight, bias = (3 * torch.randn(shape) + 1 for shape in ((7, channels), (channels,), (channels,)))
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    eager = F.layer_norm(x, weight.shape, weight, bias, EPS)
    exact = F.layer_norm(x.double(), weight.shape, weight.double(), bias.double(), EPS)
    assert_as_good_as_torch(ops.layer_norm(x, weight, bias, eps=EPS), eager, exact)


def test_a_large_mean_does_not_spoil_the_variance():
    x, weight, bias = torch.randn(4, 256) + 1000, torch.ones(256), torch.zeros(256)
    exact = F.layer_norm(x.double(), (256,), eps=EPS)
    assert_as_good_as_torch(ops.layer_norm(x, weight, bias, eps=EPS), F.layer_norm(x, (256,), eps=EPS), exact)


def test_the_residual_is_summed_in_float32_and_comes_back():
    x, residual, weight = torch.randn(5, 64).bfloat16(), 100 * torch.randn(5, 64), torch.randn(64).bfloat16()
    y, total = ops.rms_norm(x, weight, eps=EPS, residual=residual)
    assert total.dtype == torch.float32
    assert torch.equal(total, residual + x.float())
    assert torch.equal(y, ops.rms_norm(total, weight, eps=EPS, out_dtype=torch.bfloat16))


def test_layer_norm_takes_a_residual_too():
    x, residual, weight, bias = torch.randn(5, 64), torch.randn(5, 64), torch.randn(64), torch.randn(64)
    y, total = ops.layer_norm(x, weight, bias, eps=EPS, residual=residual)
    assert torch.equal(total, residual + x)
    assert torch.equal(y, ops.layer_norm(total, weight, bias, eps=EPS))


def test_the_residual_is_not_written_to():
    residual = torch.randn(5, 64)
    before = residual.clone()
    ops.rms_norm(torch.randn(5, 64), torch.randn(64), eps=EPS, residual=residual)
    assert torch.equal(residual, before)


def test_heads_are_normed_one_by_one():
    x, weight = torch.randn(5, 3, 16), torch.randn(16)
    rows = ops.rms_norm(x.view(15, 16), weight, eps=EPS)
    assert torch.equal(ops.rms_norm(x, weight, eps=EPS), rows.view(5, 3, 16))


def test_strided_rows_give_the_bits_of_contiguous_ones(dtype):
    x, weight = torch.randn(6, 3, 40).to(dtype)[:, 1], torch.randn(40).to(dtype)
    assert torch.equal(ops.rms_norm(x, weight, eps=EPS), ops.rms_norm(x.contiguous(), weight, eps=EPS))
    assert torch.equal(
        ops.layer_norm(x, weight, weight, eps=EPS), ops.layer_norm(x.contiguous(), weight, weight, eps=EPS)
    )


@pytest.mark.parametrize("channels", [16384, 16385, 40000])
def test_rows_too_long_for_registers_are_normed_in_pieces(channels):
    x, residual = (3 * torch.randn(2, channels)).bfloat16(), torch.randn(2, channels) + 5
    weight, bias = torch.randn(channels), torch.randn(channels)
    y, total = ops.layer_norm(x, weight, bias, eps=EPS, residual=residual)
    assert torch.equal(total, residual + x)
    exact = F.layer_norm(total.double(), weight.shape, weight.double(), bias.double(), EPS)
    eager = F.layer_norm(total, weight.shape, weight, bias, EPS).bfloat16()
    assert_as_good_as_torch(y, eager, exact)
    exact = plain_rms(x.double(), weight.double())
    assert_as_good_as_torch(ops.rms_norm(x, weight, eps=EPS), plain_rms(x, weight.bfloat16()), exact)


def test_long_rows_inside_a_wider_tensor_are_normed_where_they_lie():
    x, weight = torch.randn(2, 3, 16400)[:, :2], torch.randn(16400)
    assert torch.equal(ops.rms_norm(x, weight, eps=EPS).flatten(0, 1), ops.rms_norm(x.flatten(0, 1), weight, eps=EPS))


def test_weights_may_have_a_dtype_of_their_own():
    x, weight = torch.randn(5, 70).bfloat16(), torch.randn(70)
    y = ops.rms_norm(x, weight, eps=EPS, out_dtype=torch.float32)
    assert y.dtype == torch.float32
    assert_as_good_as_torch(y, plain_rms(x.float(), weight), plain_rms(x.double(), weight.double()))


def test_norms_of_float16_are_as_exact_as_torch():
    x, weight, bias = (torch.randn(shape).half() for shape in ((5, 70), (70,), (70,)))
    exact = plain_rms(x.double(), weight.double())
    assert_as_good_as_torch(ops.rms_norm(x, weight, eps=EPS), plain_rms(x, weight), exact)
    exact = F.layer_norm(x.double(), (70,), weight.double(), bias.double(), EPS)
    assert_as_good_as_torch(ops.layer_norm(x, weight, bias, eps=EPS), F.layer_norm(x, (70,), weight, bias, EPS), exact)


def test_heads_inside_a_wider_tensor_are_normed_where_they_lie():
    qkv, weight = torch.randn(6, 5, 7, 16), torch.randn(16)
    for heads in (qkv[:, 1:3, 2:5], qkv[:, 0, 2:5], qkv[:, 1, 2], qkv[2, 1, 3]):
        rows = heads.reshape(-1, 16)
        assert torch.equal(ops.rms_norm(heads, weight, eps=EPS).view(-1, 16), ops.rms_norm(rows, weight, eps=EPS))


def test_no_rows_are_no_rows():
    assert ops.rms_norm(torch.empty(0, 8), torch.ones(8), eps=EPS).shape == (0, 8)
    assert ops.layer_norm(torch.empty(0, 8), torch.ones(8), torch.ones(8), eps=EPS).shape == (0, 8)
