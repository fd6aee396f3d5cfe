"""LayerNorm and RMSNorm, with the sum into the residual stream in the same pass over memory.

rms    y = x / sqrt(mean(x^2) + eps) * w                     https://arxiv.org/abs/1910.07467
layer  y = (x - mean(x)) / sqrt(var(x) + eps) * w + b        https://arxiv.org/abs/1607.06450
Weights stay in fp32 whatever the model's dtype: they are few, and Gemma's 1 + w loses in bf16 what w alone keeps.
"""

import torch
from torch import Tensor, nn

from polyserve.model.config import ModelConfig
from polyserve.model.linear import unfilled
from polyserve_kernels import ops


class Norm(nn.Module):
    """x is [..., C] in any float dtype, the residual stream [T, C] fp32, y in `out_dtype`."""

    def __init__(self, config: ModelConfig, size: int, *, out_dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.out_dtype = out_dtype
        self.weight = unfilled(size, dtype=torch.float32)
        self.bias = unfilled(size, dtype=torch.float32) if config.norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """y = norm(x)"""
        if self.bias is None:
            return ops.rms_norm(x, self.weight, eps=self.eps, out_dtype=self.out_dtype)
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps, out_dtype=self.out_dtype)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """residual' = residual + x,  y = norm(residual'). Returns (y, residual')."""
        if self.bias is None:
            return ops.rms_norm(x, self.weight, eps=self.eps, residual=residual, out_dtype=self.out_dtype)
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps, residual=residual, out_dtype=self.out_dtype)
