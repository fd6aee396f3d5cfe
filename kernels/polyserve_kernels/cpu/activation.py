"""GELU and gated activations (kernels/csrc/activation.cpp).   x [T, F], or [T, 2F] with a gate   y [T, F]

Gradients (kernels/csrc/gradients.cpp) are in float32, rounded once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.cpu.library import GRADIENT_ROWS, Activation, ActivationGradient, call, rows

_BIAS_GELU, _GATED_SILU, _GATED_GELU = range(3)


def _activate(x: Tensor, bias: Tensor | None, *, kind: int) -> Tensor:
    x = rows(x)
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(x.shape[0], _width(x, kind), dtype=x.dtype)
    call(
        "ps_activation", Activation, x=x, bias=bias, y=y, T=x.shape[0], F=y.shape[1], x_stride=x.stride(0), kind=kind,
        dtype=x.dtype,
    )  # fmt: skip
    return y


def _gradients(
    saved: tuple[Tensor, Tensor | None], grads: Sequence[Tensor | None], needed: Sequence[bool], *, kind: int
) -> tuple[Tensor | None, Tensor | None]:
    x, bias = saved
    if grads[0] is None:
        return None, None
    x, dy, width = rows(x), grads[0].contiguous(), _width(x, kind)
    bias = None if bias is None else bias.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype)
    sums = torch.zeros(-(-x.shape[0] // GRADIENT_ROWS), width) if needed[1] else None
    call(
        "ps_activation_gradient", ActivationGradient, x=x, bias=bias, dy=dy, dx=dx, d_bias=sums, T=x.shape[0], F=width,
        x_stride=x.stride(0), kind=kind, dtype=x.dtype,
    )  # fmt: skip
    return dx, None if sums is None else sums.sum(0).to(x.dtype)


def _width(x: Tensor, kind: int) -> int:
    return x.shape[1] if kind == _BIAS_GELU else x.shape[1] // 2


_operation = differentiable(_activate, _gradients, save=lambda args, _: args)


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = _operation(x, bias, kind=_BIAS_GELU)
    return y


def gated_silu(x: Tensor) -> Tensor:
    y: Tensor = _operation(x, None, kind=_GATED_SILU)
    return y


def gated_gelu(x: Tensor) -> Tensor:
    y: Tensor = _operation(x, None, kind=_GATED_GELU)
    return y
