"""y = x w^T + bias, w dequantised: rounded(values * scale + minimum).

How     the whole weight is dequantised to x's dtype, and multiplied by `matmul`
Shapes  x [T, K]   w [N, K], a scale for each group of channels   y [T, N]
"""

import torch
from torch import Tensor

from polyserve_kernels.reference.matmul import matmul
from polyserve_kernels.types import QuantizedWeight


def quantized_matmul(x: Tensor, w: QuantizedWeight, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    return matmul(x, dequantized(w, x.dtype), bias, out_dtype=out_dtype)


def dequantized(w: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] in dtype: the product and the sum rounded to float32, then to dtype."""
    values = w.values
    if w.scheme == "int4":
        values = torch.stack((values & 15, values >> 4), dim=-1).flatten(1)  # the even channel in the low half
    groups = values.float().view(*w.scales.shape, w.group_size) * w.scales.float()[:, :, None]
    if w.minimums is not None:
        groups = groups + w.minimums.float()[:, :, None]
    return groups.flatten(1).to(dtype)
