"""RMSNorm and LayerNorm, with the sum into the residual stream (kernels/csrc/norm.cpp).   x, residual, y [..., C]"""

import torch
from torch import Tensor

from polyserve_kernels.cpu.library import Norm, call


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, out_dtype: torch.dtype) -> Tensor:
    return _norm(x, None, weight, None, eps, out_dtype)[0]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, out_dtype: torch.dtype) -> Tensor:
    return _norm(x, None, weight, bias, eps, out_dtype)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return _norm(x, residual, weight, None, eps, out_dtype)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return _norm(x, residual, weight, bias, eps, out_dtype)


def _norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """y, and the new residual stream (y again if there is none)."""
    x, weight = x.contiguous(), weight.contiguous()
    residual, bias = (None if t is None else t.contiguous() for t in (residual, bias))
    y = torch.empty(x.shape, dtype=out_dtype)
    new_residual = None if residual is None else torch.empty_like(residual)
    size = x.shape[-1]
    call(
        "ps_norm", Norm, x=x, residual=residual, new_residual=new_residual, weight=weight, bias=bias, y=y,
        T=x.numel() // max(size, 1), C=size, eps=eps, dtype=x.dtype, weight_dtype=weight.dtype, out_dtype=out_dtype,
    )  # fmt: skip
    return y, y if new_residual is None else new_residual
