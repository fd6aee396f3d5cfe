"""The dense product by cuBLAS, for the backend `triton+cublas`: its tiles follow the number of rows, so the bits do.

Shapes  x [T, K]   w [N, K]   bias [N]
"""

import torch
from torch import Tensor


def matmul(x: Tensor, w: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    if out_dtype == x.dtype:
        return torch.nn.functional.linear(x, w, bias)
    y = torch.mm(x, w.t(), out_dtype=torch.float32) if x.is_cuda else x.float() @ w.float().t()
    return (y if bias is None else y + bias).to(out_dtype)
