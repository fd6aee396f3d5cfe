"""y = x w^T + bias (kernels/csrc/matmul.cpp).   x [T, K]   w [N, K]   bias [N]   y [T, N]

Gradients are torch's products: of bfloat16 where the processor multiplies it itself, elsewhere of widened operands.
Each is summed in float32 over all rows, and rounded once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from polyserve_kernels import processor
from polyserve_kernels.autograd import differentiable
from polyserve_kernels.cpu.library import Matmul, call, rows
from polyserve_kernels.cpu.packed import structs
from polyserve_kernels.types import PackedWeight


def multiply(x: Tensor, w: Tensor | PackedWeight, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    """The operation without gradients."""
    return multiply_into(torch.empty(x.shape[0], w.shape[0], dtype=out_dtype), x, w, bias)


def multiply_into(y: Tensor, x: Tensor, w: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """The same into a contiguous y, which is returned."""
    x, w = rows(x), rows(w) if isinstance(w, Tensor) else w
    weights = structs(w)
    bias = None if bias is None else bias.contiguous()
    call(
        "ps_matmul", Matmul, x=x, weights=weights, num_weights=len(weights), bias=bias, y=y,
        T=x.shape[0], N=w.shape[0], K=x.shape[1], x_stride=x.stride(0), dtype=x.dtype, out_dtype=y.dtype,
    )  # fmt: skip
    return y


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b, of one dtype, at any strides: sums in float32, rounded once to that dtype."""
    if a.dtype == torch.float32 or (a.dtype == torch.bfloat16 and processor.multiplies_bfloat16()):
        return torch.mm(a, b)
    return torch.mm(a.float(), b.float()).to(a.dtype)


def _gradients(
    saved: tuple[Tensor, Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
    *,
    out_dtype: torch.dtype,  # noqa: ARG001  (an option of the operation)
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx = dy w,  dw = dy^T x,  dbias = the sum of dy over rows."""
    x, w = saved
    if grads[0] is None:
        return None, None, None
    dy = grads[0].to(x.dtype)
    return (
        _product(dy, w) if needed[0] else None,
        _product(dy.t(), x) if needed[1] else None,
        grads[0].sum(0, dtype=torch.float32).to(x.dtype) if needed[2] else None,
    )


matmul = differentiable(multiply, _gradients, save=lambda args, _: args[:2])
