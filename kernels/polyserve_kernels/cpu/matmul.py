"""y = x w^T + bias (kernels/csrc/matmul.cpp).   x [T, K]   w [N, K]   bias [N]   y [T, N]"""

import torch
from torch import Tensor

from polyserve_kernels.cpu.library import Matmul, call, rows
from polyserve_kernels.cpu.packed import structs
from polyserve_kernels.types import PackedWeight


def matmul(x: Tensor, w: Tensor | PackedWeight, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    x, w = rows(x), rows(w) if isinstance(w, Tensor) else w
    weights = structs(w)
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(x.shape[0], w.shape[0], dtype=out_dtype)
    call(
        "ps_matmul", Matmul, x=x, weights=weights, num_weights=len(weights), bias=bias, y=y,
        T=x.shape[0], N=w.shape[0], K=x.shape[1], x_stride=x.stride(0), dtype=x.dtype, out_dtype=out_dtype,
    )  # fmt: skip
    return y
