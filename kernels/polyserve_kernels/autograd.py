"""Gradients for operations of backends whose kernels torch cannot differentiate.

An operation is two plain functions:
    forward(*args, **options) -> a tensor, or a tuple of tensors
    backward(saved, grads, needed, **options) -> for each of args its gradient; None where there is none or it is not
                                                 needed
    saved: what `save(args, results)` kept of the forward pass.  grads: of each result, None where there is none.
Options are keyword arguments that are not differentiated. Nothing is kept where no gradient is wanted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Forward = Callable[..., Any]
Save = Callable[[tuple[Any, ...], tuple[Tensor, ...]], tuple[Any, ...]]
Backward = Callable[..., Sequence[Tensor | None]]


def differentiable(forward: Forward, backward: Backward, *, save: Save, results: int = 1) -> Forward:
    """`forward` with gradients.  results: how many of its results, the first ones, gradients pass through."""

    class Operation(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, options: dict[str, Any], *args: Any) -> Any:
            given = forward(*args, **options)
            outputs = given if isinstance(given, tuple) else (given,)
            ctx.options = options
            kept = save(args, outputs)
            ctx.is_tensor = [isinstance(x, Tensor) for x in kept]
            ctx.others = [x for x in kept if not isinstance(x, Tensor)]
            ctx.save_for_backward(*(x for x in kept if isinstance(x, Tensor)))
            ctx.mark_non_differentiable(*outputs[results:])
            ctx.set_materialize_grads(False)
            return given

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
            saved = tuple(next(tensors) if is_tensor else next(others) for is_tensor in ctx.is_tensor)
            wanted = backward(saved, grads[:results], ctx.needs_input_grad[1:], **ctx.options)
            return None, *wanted

    def operation(*args: Any, **options: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return Operation.apply(options, *args)  # type: ignore[no-untyped-call]
        return forward(*args, **options)

    return operation


def recomputed(forward: Forward, meaning: Forward, *, results: int = 1) -> Forward:
    """`forward` with the gradients of `meaning`, the same operation in terms that torch can differentiate."""

    def backward(
        saved: tuple[Any, ...], grads: Sequence[Tensor | None], needed: Sequence[bool], **options: Any
    ) -> list[Tensor | None]:
        leaves = [x.detach().requires_grad_(wanted) if wanted else x for x, wanted in zip(saved, needed, strict=True)]
        with torch.enable_grad():
            given = meaning(*leaves, **options)
        outputs = given if isinstance(given, tuple) else (given,)
        pairs = [(y, grad) for y, grad in zip(outputs, grads, strict=False) if grad is not None]
        sources = [x for x, wanted in zip(leaves, needed, strict=True) if wanted]
        found = iter(
            torch.autograd.grad([y for y, _ in pairs], sources, [grad for _, grad in pairs], allow_unused=True)
        )
        return [next(found) if wanted else None for wanted in needed]

    return differentiable(forward, backward, save=lambda args, _: args, results=results)
