"""RMSNorm and LayerNorm, with the sum into the residual stream (kernels/csrc/norm.cpp).   x, residual, y [..., C]

Gradients (kernels/csrc/gradients.cpp) are in float32, rounded once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.cpu.library import GRADIENT_ROWS, Norm, NormGradient, call


def _rms_norm(x: Tensor, weight: Tensor, *, eps: float, out_dtype: torch.dtype) -> Tensor:
    return _norm(x, None, weight, None, eps, out_dtype)[0]


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, out_dtype: torch.dtype) -> Tensor:
    return _norm(x, None, weight, bias, eps, out_dtype)[0]


def _add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return _norm(x, residual, weight, None, eps, out_dtype)


def _add_layer_norm(
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


def _gradients(
    x: Tensor, weight: Tensor, grads: Sequence[Tensor | None], eps: float, *, is_layer: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of what was normed [..., C], float32, and of weight and bias [C], float32.

    grads: of y, and what else x's gradient consists of."""
    dy, d_residual = grads[0], grads[1] if len(grads) == 2 else None
    if dy is None:
        return d_residual, None, None
    x, weight, dy = x.float().contiguous(), weight.contiguous(), dy.contiguous()
    d_residual = None if d_residual is None else d_residual.float().contiguous()
    size = x.shape[-1]
    num_rows = x.numel() // max(size, 1)
    dx = torch.empty_like(x)
    sums = torch.zeros(1 + is_layer, -(-num_rows // GRADIENT_ROWS), size)
    call(
        "ps_norm_gradient", NormGradient, x=x, weight=weight, dy=dy, d_residual=d_residual, dx=dx, d_weight=sums[0],
        d_bias=sums[1] if is_layer else None, T=num_rows, C=size, eps=eps, weight_dtype=weight.dtype, dy_dtype=dy.dtype,
    )  # fmt: skip
    return dx, *sums.sum(1), *(() if is_layer else (None,))


def _with_gradients(forward: Any, *, is_layer: bool, adds: bool) -> Any:
    """A norm's operation: forward(x, weight, [bias]), or forward(x, residual, weight, [bias])."""

    def save(args: tuple[Any, ...], results: tuple[Tensor, ...]) -> tuple[Any, ...]:
        return results[1] if adds else args[0], args[1 + adds], args[0].dtype

    def backward(
        saved: tuple[Tensor, Tensor, torch.dtype],
        grads: Sequence[Tensor | None],
        needed: Sequence[bool],  # noqa: ARG001  (all come out of one pass)
        *,
        eps: float,
        out_dtype: torch.dtype,  # noqa: ARG001  (an option of the operation)
    ) -> list[Tensor | None]:
        x, weight, dtype = saved
        dx, *of_weights = _gradients(x, weight, grads, eps, is_layer=is_layer)
        narrow = None if dx is None else dx.to(dtype)
        found = [narrow, *([dx] if adds else []), *of_weights[: 1 + is_layer]]
        return [None if d is None else d.to(weight.dtype) if number > adds else d for number, d in enumerate(found)]

    return differentiable(forward, backward, save=save, results=1 + adds)


rms_norm = _with_gradients(_rms_norm, is_layer=False, adds=False)
layer_norm = _with_gradients(_layer_norm, is_layer=True, adds=False)
add_rms_norm = _with_gradients(_add_rms_norm, is_layer=False, adds=True)
add_layer_norm = _with_gradients(_add_layer_norm, is_layer=True, adds=True)
