"""bias_gelu, gated_silu and gated_gelu."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyserve_kernels import ops
from support.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("backend", "poisoned")


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize("width", [1, 31, 256, 2049])
def test_bias_gelu_is_as_exact_as_torch(width, dtype):
    x, bias = (3 * torch.randn(9, width)).to(dtype), torch.randn(width).to(dtype)
    assert_as_good_as_torch(ops.bias_gelu(x, bias), gelu(x + bias), gelu(x.double() + bias.double()))


def test_the_bias_may_be_left_out(dtype):
    x = (3 * torch.randn(9, 50)).to(dtype)
    assert_as_good_as_torch(ops.bias_gelu(x), gelu(x), gelu(x.double()))


@pytest.mark.parametrize(("op", "plain"), [(ops.gated_silu, F.silu), (ops.gated_gelu, gelu)], ids=["silu", "gelu"])
@pytest.mark.parametrize("width", [1, 31, 256, 2049])
def test_gated_activations_are_as_exact_as_torch(op, plain, width, dtype):
    x = (3 * torch.randn(9, 2 * width)).to(dtype)
    gate, up = x[:, :width], x[:, width:]
    assert_as_good_as_torch(op(x), plain(gate) * up, plain(gate.double()) * up.double())


def test_activations_of_float16_are_as_exact_as_torch():
    x, bias = (3 * torch.randn(9, 62)).half(), torch.randn(62).half()
    gate, up = x[:, :31], x[:, 31:]
    assert_as_good_as_torch(ops.bias_gelu(x, bias), gelu(x + bias), gelu(x.double() + bias.double()))
    assert_as_good_as_torch(ops.gated_silu(x), F.silu(gate) * up, F.silu(gate.double()) * up.double())


@pytest.mark.parametrize("op", [ops.bias_gelu, ops.gated_silu, ops.gated_gelu])
def test_far_from_zero_nothing_overflows(op):
    x = torch.tensor([[-1e4, -200.0, -90.0, 90.0, 200.0, 1e4]])
    y = op(torch.cat((x, torch.ones_like(x)), dim=1)) if op is not ops.bias_gelu else op(x)
    assert torch.equal(y, x.clamp(min=0))


@pytest.mark.parametrize("op", [ops.bias_gelu, ops.gated_silu, ops.gated_gelu])
def test_strided_rows_give_the_bits_of_contiguous_ones(op, dtype):
    x = torch.randn(6, 3, 40).to(dtype)[:, 1]
    assert torch.equal(op(x), op(x.contiguous()))


@pytest.mark.parametrize("op", [ops.bias_gelu, ops.gated_silu, ops.gated_gelu])
def test_no_rows_are_no_rows(op):
    assert op(torch.empty(0, 8)).shape[0] == 0
