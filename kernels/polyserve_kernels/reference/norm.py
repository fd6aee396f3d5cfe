"""Norms over the last dimension, in float32.

rms     y = x / sqrt(mean(x^2) + eps) * weight
layer   y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias
add_    the same of residual' = residual + x, which is returned as well
Shapes  x, residual [..., C]   weight, bias [C]
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, out_dtype: torch.dtype) -> Tensor:
    x = x.float().contiguous()
    return (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight.float()).to(out_dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    residual = residual + x
    return rms_norm(residual, weight, eps=eps, out_dtype=out_dtype), residual


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, out_dtype: torch.dtype) -> Tensor:
    x = x.float().contiguous()
    return torch.nn.functional.layer_norm(x, weight.shape, weight.float(), bias.float(), eps).to(out_dtype)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    residual = residual + x
    return layer_norm(residual, weight, bias, eps=eps, out_dtype=out_dtype), residual
