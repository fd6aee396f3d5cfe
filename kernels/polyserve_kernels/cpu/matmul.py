"""y = x w^T + bias (kernels/csrc/matmul.cpp).   x [T, K]   w [N, K]   bias [N]   y [T, N]"""

import torch
from torch import Tensor

from polyserve_kernels.cpu.library import Matmul, call, rows


def matmul(x: Tensor, w: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    x, w = rows(x), rows(w)
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(x.shape[0], w.shape[0], dtype=out_dtype)
    call(
        "ps_matmul", Matmul, x=x, w=w, bias=bias, y=y, T=x.shape[0], N=w.shape[0], K=x.shape[1],
        x_stride=x.stride(0), w_stride=w.stride(0), dtype=x.dtype, out_dtype=out_dtype,
    )  # fmt: skip
    return y
