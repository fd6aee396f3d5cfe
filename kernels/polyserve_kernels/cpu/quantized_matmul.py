"""y = x w^T + bias, w dequantised as a whole, and multiplied by `matmul`.   x [T, K]   w [N, K]   y [T, N]"""

import torch
from torch import Tensor

from polyserve_kernels.cpu.matmul import multiply
from polyserve_kernels.reference.quantized_matmul import dequantized
from polyserve_kernels.types import QuantizedWeight


def quantized_matmul(x: Tensor, w: QuantizedWeight, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    return multiply(x, dequantized(w, x.dtype), bias, out_dtype=out_dtype)
