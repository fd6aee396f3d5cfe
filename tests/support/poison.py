"""New memory full of poison: what a kernel leaves unwritten is NaN, or the largest integer, and never 0 by luck."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_MAKERS = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty"))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Poison everything that torch.empty, empty_like, empty_strided and Tensor.new_empty give inside the block."""
    originals = [getattr(owner, name) for owner, name in _MAKERS]
    for (owner, name), original in zip(_MAKERS, originals, strict=True):
        setattr(owner, name, _poisoning(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(_MAKERS, originals, strict=True):
            setattr(owner, name, original)


def poison(x: Tensor) -> Tensor:
    """x, filled with NaN or the largest number of its dtype."""
    if x.dtype.itemsize == 1 and x.is_floating_point():
        x.view(torch.int8).fill_(127)  # NaN in every float8 that has one
        return x
    if x.dtype == torch.bool:
        return x.fill_(True)
    return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)


def _poisoning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **options: Any) -> Tensor:
        x = make(*args, **options)
        return x if x.is_meta else poison(x)

    return made
