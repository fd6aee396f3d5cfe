"""Gradients by an operation, by plain torch and in float64, and the rule that says how far they may be apart."""

from collections.abc import Callable

import torch
from torch import Tensor

from support.tolerance import assert_as_good_as_torch


def gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of every input, for a gradient of the result that runs from -1 to 1."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    y = function(*inputs)
    slope = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    return torch.autograd.grad(y, inputs, slope)


def assert_gradients(
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    *shapes: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    kept_float32: int = 0,
) -> None:
    """On random inputs.  kept_float32: how many of them, the last ones, are float32 whatever dtype is."""
    dtypes = [dtype] * (len(shapes) - kept_float32) + [torch.float32] * kept_float32
    inputs = tuple(torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    exact = gradients(plain, tuple(x.double() for x in inputs))
    for a, b, c in zip(gradients(ours, inputs), gradients(plain, inputs), exact, strict=True):
        assert_as_good_as_torch(a, b, c)
