"""y = x W^T + b, the one product of the decoder.   x [T, K]   W [N, K]   b [N]   y [T, N]

Parameters are made on the meta device: they have a shape and a dtype, and no memory until the loader fills them. For
serving, the loader may put a packed weight in the place of a matrix.
"""

import torch
from torch import Tensor, nn

from polyserve_kernels import ops
from polyserve_kernels.types import PackedWeight


class Linear(nn.Module):
    def __init__(self, num_inputs: int, num_outputs: int, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: Tensor | PackedWeight = unfilled(num_outputs, num_inputs, dtype=dtype)
        self.bias = unfilled(num_outputs, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.matmul(x, self.weight, self.bias)

    def without_bias(self, x: Tensor) -> Tensor:
        """The product alone, for callers that add the bias in the same pass as what follows."""
        return ops.matmul(x, self.weight)


def unfilled(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter without memory. Serving needs no gradients; training asks for them."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device="meta"), requires_grad=False)
