"""Gradients pass through the operations that training uses, as exactly as through plain torch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyserve_kernels import ops
from polyserve_kernels.dispatch import use_backend
from polyserve_kernels.triton import tuning
from support.gradients import assert_gradients


def test_matmul(backend, poisoned, dtype):
    assert_gradients(ops.matmul, F.linear, (40, 64), (1100, 64), (1100,), dtype=dtype)
    assert_gradients(ops.matmul, F.linear, (0, 64), (30, 64), (30,), dtype=dtype)


def test_gradients_of_a_product_that_nobody_wants_are_left_out(backend, poisoned):
    x, w, bias = torch.randn(6, 40), torch.randn(9, 40), torch.randn(9)
    for wanted, expected in ((x, w.sum(0).expand(6, 40)), (w, x.sum(0).expand(9, 40)), (bias, torch.full((9,), 6.0))):
        wanted.requires_grad_()
        ours = torch.autograd.grad(ops.matmul(x, w, bias).sum(), wanted)[0]
        wanted.requires_grad_(False)
        assert torch.allclose(ours, expected, atol=1e-5)


def plain_rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def plain_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


def summed_rms(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    return torch.cat(ops.rms_norm(x, weight, eps=1e-5, residual=residual, out_dtype=torch.float32))


def summed_layer(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat(ops.layer_norm(x, weight, bias, eps=1e-5, residual=residual, out_dtype=torch.float32))


@pytest.mark.parametrize("shape", [(40, 64), (130, 33), (4, 9, 31), (6, 129), (40, 600)])
def test_norms(shape, backend, poisoned, dtype):
    assert_gradients(lambda x, weight: ops.rms_norm(x, weight, eps=1e-5), plain_rms, shape, shape[-1:], dtype=dtype)
    assert_gradients(
        lambda x, weight, bias: ops.layer_norm(x, weight, bias, eps=1e-5),
        plain_layer,
        *(shape, shape[-1:], shape[-1:]),
        dtype=dtype,
    )


@pytest.mark.parametrize("shape", [(40, 64), (3, 8193)])  # the second in pieces: too long for registers
def test_norms_of_a_residual_sum(shape, backend, poisoned, dtype):
    assert_gradients(
        summed_rms,
        lambda x, residual, weight: torch.cat((plain_rms(x + residual, weight), x + residual)),
        *(shape, shape, shape[-1:]),
        dtype=dtype,
        kept_float32=2,
    )
    assert_gradients(
        summed_layer,
        lambda x, residual, weight, bias: torch.cat((plain_layer(x + residual, weight, bias), x + residual)),
        *(shape, shape, shape[-1:], shape[-1:]),
        dtype=dtype,
        kept_float32=3,
    )


@pytest.mark.parametrize("shape", [(41, 64), (7, 600), (5, 8193)])
def test_a_program_may_have_many_rows_to_sum(shape, poisoned, monkeypatch):
    monkeypatch.setitem(tuning.ROWS, 90, replace(tuning.ROWS[90], backward_elements=3072))
    monkeypatch.setitem(tuning.ACTIVATIONS, 90, replace(tuning.ACTIVATIONS[90], programs=2))
    with use_backend("triton"):
        assert_gradients(
            lambda x, weight, bias: ops.layer_norm(x, weight, bias, eps=1e-5),
            plain_layer,
            *(shape, shape[-1:], shape[-1:]),
        )
        assert_gradients(ops.bias_gelu, lambda x, bias: F.gelu(x + bias, approximate="tanh"), shape, shape[-1:])


def test_gradients_of_a_norm_that_nobody_wants_are_left_out(backend, poisoned):
    x, residual, weight = torch.randn(6, 40), torch.randn(6, 40), torch.randn(40)
    for wanted in (x, residual, weight):
        wanted.requires_grad_()
        y, total = ops.rms_norm(x, weight, eps=1e-5, residual=residual)
        ours = torch.autograd.grad(y.sum(), wanted, retain_graph=True)[0]
        expected = torch.autograd.grad(plain_rms(x.double() + residual.double(), weight.double()).sum(), wanted)[0]
        assert torch.allclose(ours, expected, atol=1e-5)
        if wanted is not weight:
            assert torch.equal(torch.autograd.grad(total.sum(), wanted)[0], torch.ones(6, 40))
        wanted.requires_grad_(False)


def test_no_rows_give_weights_no_slope(backend, poisoned):
    weight, bias = torch.ones(8, requires_grad=True), torch.ones(8, requires_grad=True)
    ops.layer_norm(torch.empty(0, 8), weight, bias, eps=1e-5).sum().backward()
    ops.bias_gelu(torch.empty(0, 8), bias).sum().backward()
    assert torch.equal(weight.grad, torch.zeros(8))
    assert torch.equal(bias.grad, torch.zeros(8))


@pytest.mark.parametrize(("num_rows", "width"), [(3, 531), (24, 31), (24, 64)])
def test_activations(num_rows, width, backend, poisoned, dtype):
    def gelu(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    rows, gated = (num_rows, width), (num_rows, 2 * width)
    assert_gradients(ops.bias_gelu, lambda x, bias: gelu(x + bias), rows, (width,), dtype=dtype)
    assert_gradients(ops.bias_gelu, gelu, rows, dtype=dtype)
    assert_gradients(ops.gated_silu, lambda x: F.silu(x[:, :width]) * x[:, width:], gated, dtype=dtype)
    assert_gradients(ops.gated_gelu, lambda x: gelu(x[:, :width]) * x[:, width:], gated, dtype=dtype)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turning", [8, 6])
def test_rotary(turning, interleaved, backend, poisoned, dtype):
    angle = torch.randn(20, turning // 2, dtype=torch.float64)
    first = torch.arange(turning // 2) * 2 if interleaved else torch.arange(turning // 2)
    second = first + 1 if interleaved else first + turning // 2

    def ours(q: Tensor, k: Tensor) -> Tensor:
        return torch.cat(ops.rotary(q, k, angle.cos().float(), angle.sin().float(), interleaved=interleaved), dim=1)

    def plain(q: Tensor, k: Tensor) -> Tensor:
        x = torch.cat((q, k), dim=1)
        a, b = x[..., first], x[..., second]
        cos, sin = (y.float().to(x.dtype)[:, None] for y in (angle.cos(), angle.sin()))
        turned = x.clone()
        turned[..., first], turned[..., second] = a * cos - b * sin, b * cos + a * sin
        return turned

    assert_gradients(ours, plain, (20, 4, 8), (20, 2, 8), dtype=dtype)
