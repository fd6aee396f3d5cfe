"""Activations, in float32, one rounding at the end.

silu(x) = x / (1 + exp(-x))        gelu(x) = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
They are spelled out because torch's own (like its sigmoid) take one path for whole vectors and another for what is left
at the end, so that an element's bits depend on where it stands; its exp and tanh do not.
"""

import torch
from torch import Tensor

_SQRT_2_OVER_PI = 0.7978845608028654


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    u = x.float() if bias is None else x.float() + bias.float()
    return _gelu(u).to(x.dtype)


def gated_silu(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=1)
    return (_silu(gate) * up).to(x.dtype)


def gated_gelu(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=1)
    return (_gelu(gate) * up).to(x.dtype)


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)))
