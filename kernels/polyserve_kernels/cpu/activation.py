"""GELU and gated activations (kernels/csrc/activation.cpp).   x [T, F], or [T, 2F] with a gate   y [T, F]

The gradient of `bias_gelu` is torch's own, one pass over x.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.cpu.library import Activation, call, rows

_BIAS_GELU, _GATED_SILU, _GATED_GELU = range(3)


def _bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    return _activate(_BIAS_GELU, x, bias, x.shape[1])


def gated_silu(x: Tensor) -> Tensor:
    return _activate(_GATED_SILU, x, None, x.shape[1] // 2)


def gated_gelu(x: Tensor) -> Tensor:
    return _activate(_GATED_GELU, x, None, x.shape[1] // 2)


def _activate(kind: int, x: Tensor, bias: Tensor | None, width: int) -> Tensor:
    x = rows(x)
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(x.shape[0], width, dtype=x.dtype)
    call(
        "ps_activation", Activation, x=x, bias=bias, y=y, T=x.shape[0], F=width, x_stride=x.stride(0), kind=kind,
        dtype=x.dtype,
    )  # fmt: skip
    return y


def _bias_gelu_gradients(
    saved: tuple[Tensor, Tensor | None], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """In float32, rounded once. dbias = the sum of dx over rows."""
    x, bias = saved
    if grads[0] is None:
        return None, None
    inner = x.float() if bias is None else x.float() + bias.float()
    dx = torch.ops.aten.gelu_backward(grads[0].float(), inner, approximate="tanh")
    return dx.to(x.dtype) if needed[0] else None, dx.sum(0).to(x.dtype) if needed[1] else None


bias_gelu = differentiable(_bias_gelu, _bias_gelu_gradients, save=lambda args, _: args)
