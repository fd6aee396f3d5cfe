"""Gradients pass through the operations that training uses, as exactly as through plain torch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from polyserve_kernels import ops
from support.plain_attention import plain_attention
from support.tolerance import assert_as_good_as_torch


def gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    y = function(*inputs)
    slope = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    return torch.autograd.grad(y, inputs, slope)


def assert_gradients(
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    *shapes: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> None:
    inputs = tuple(torch.randn(shape).to(dtype) for shape in shapes)
    exact = gradients(plain, tuple(x.double() for x in inputs))
    for a, b, c in zip(gradients(ours, inputs), gradients(plain, inputs), exact, strict=True):
        assert_as_good_as_torch(a, b, c)


def test_matmul():
    assert_gradients(ops.matmul, F.linear, (40, 64), (1100, 64), (1100,))


def test_rms_norm():
    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    assert_gradients(lambda x, weight: ops.rms_norm(x, weight, eps=1e-5), plain, (40, 64), (64,))


def test_layer_norm_of_a_residual_sum():
    def ours(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.cat(ops.layer_norm(x, weight, bias, eps=1e-5, residual=residual))

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.cat((F.layer_norm(x + residual, weight.shape, weight, bias), x + residual))

    assert_gradients(ours, plain, (40, 64), (40, 64), (64,), (64,))


def test_activations():
    def gelu(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    assert_gradients(ops.bias_gelu, lambda x, bias: gelu(x + bias), (40, 64), (64,))
    assert_gradients(ops.gated_silu, lambda x: F.silu(x[:, :32]) * x[:, 32:], (40, 64))
    assert_gradients(ops.gated_gelu, lambda x: gelu(x[:, :32]) * x[:, 32:], (40, 64))


def test_rotary():
    angle = torch.randn(20, 4, dtype=torch.float64)

    def ours(q: Tensor, k: Tensor) -> Tensor:
        return torch.cat(ops.rotary(q, k, angle.cos().float(), angle.sin().float()), dim=1)

    def plain(q: Tensor, k: Tensor) -> Tensor:
        x = torch.cat((q, k), dim=1)
        a, b = x.chunk(2, dim=-1)
        cos, sin = (y.float().to(x.dtype)[:, None] for y in (angle.cos(), angle.sin()))
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    assert_gradients(ours, plain, (20, 4, 8), (20, 2, 8))


def test_attention_with_every_option():
    lens = [3, 150, 20]
    slopes = torch.rand(6)
    option = {"scale": 0.25, "alibi_slopes": slopes, "window": 70, "soft_cap": 3.0}
    bounds = torch.tensor([0, *lens]).cumsum(0).int()
    assert_gradients(
        lambda q, k, v: ops.attention_varlen(q, k, v, bounds, **option),
        lambda q, k, v: plain_attention(q, k, v, lens, **option),
        (173, 6, 16),
        (173, 2, 16),
        (173, 2, 16),
        dtype=torch.bfloat16,
    )


def test_training_works_after_the_same_step_was_served():
    q, k, v = torch.randn(30, 4, 8), torch.randn(30, 2, 8), torch.randn(30, 2, 8)
    bounds = torch.tensor([0, 30], dtype=torch.int32)
    with torch.inference_mode():
        served = ops.attention_varlen(q, k, v, bounds, scale=0.3)
    trained = ops.attention_varlen(q.requires_grad_(), k, v, bounds, scale=0.3)
    trained.sum().backward()
    assert torch.equal(served, trained)
    assert q.grad is not None
