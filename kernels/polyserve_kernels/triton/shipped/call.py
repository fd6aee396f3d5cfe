"""One call of an operation at the sizes of a real model, which the report compiles and the checks look at.

Tensors are on `meta`: they have shapes, dtypes and strides, and no contents.
Bytes   the least that a call must move: what goes in, read once, and what comes out, written once; into a backward pass
        goes what the forward pass kept for it
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from polyserve_kernels.triton.launch import architecture, observed

EVERY_ARCHITECTURE = (80, 90, 100)

Operation = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """One call of an operation, or the backward pass of one."""

    operation: Operation
    configuration: str
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    flops: int
    gradients_of: tuple[int | str, ...] = ()  # the backward pass, for these arguments and options; empty: the forward
    many_rows: bool = False  # enough rows for the largest matrix instruction: wgmma on sm_90
    products: str | None = None  # calls that share this must share their matrix instruction, for their bits to agree
    architectures: tuple[int, ...] = EVERY_ARCHITECTURE

    @property
    def name(self) -> str:
        return self.operation.__name__ + (" backward" if self.gradients_of else "")

    @property
    def dtype(self) -> torch.dtype:
        """What is multiplied: the dtype of the first tensor."""
        return next(x.dtype for x in self.args if isinstance(x, Tensor))

    def run(self) -> int:
        """Make the call; the caller observes its launches. Returns the bytes that it must at least move."""
        if not self.gradients_of:
            return bytes_of((self.args, self.options, self.operation(*self.args, **self.options)))
        inputs: dict[int | str, Any] = dict(enumerate(self.args))
        inputs.update(self.options)
        for name in self.gradients_of:
            inputs[name] = inputs[name].detach().requires_grad_()
        kept: dict[int, Tensor] = {}
        with (
            observed(architecture(torch.device("meta")), lambda *_: None),  # the forward pass has an entry of its own
            torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(id(x), x), lambda x: x),
        ):
            results = self.operation(
                *(inputs[i] for i in range(len(self.args))), **{name: inputs[name] for name in self.options}
            )
        outputs = [x for x in (results if isinstance(results, tuple) else (results,)) if x.requires_grad]
        grads = [torch.empty_like(x) for x in outputs]
        wanted = torch.autograd.grad(outputs, [inputs[name] for name in self.gradients_of], grads)
        return bytes_of((list(kept.values()), grads, wanted))


def bytes_of(value: object) -> int:
    """Of all tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple | list):
        return sum(map(bytes_of, value))
    if isinstance(value, dict):
        return sum(map(bytes_of, value.values()))
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, part.name)) for part in fields(value))
    return 0
