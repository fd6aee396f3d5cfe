"""What an operation says to arguments that it cannot take: ValueError with what was wanted and what came."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_shape(name: str, x: Tensor, wanted: Sequence[int | str]) -> None:
    """Refuse a shape that differs. A number is wanted exactly; a word stands for any size and names it in the message."""
    shape = x.shape
    if len(shape) != len(wanted) or any(w != s and not isinstance(w, str) for w, s in zip(wanted, shape, strict=True)):
        raise ValueError(f"{name} must have shape [{', '.join(map(str, wanted))}], got {list(shape)}")


def check_dtype(name: str, x: Tensor, *wanted: torch.dtype) -> None:
    if x.dtype not in wanted:
        raise ValueError(f"{name} must be {' or '.join(_word(dtype) for dtype in wanted)}, got {_word(x.dtype)}")


def check_together(**tensors: Tensor | None) -> None:
    """Refuse tensors on different devices."""
    present = {name: x for name, x in tensors.items() if x is not None}
    devices = {x.device for x in present.values()}
    if len(devices) > 1:
        raise ValueError(f"{', '.join(present)} must be on one device, got {', '.join(str(x.device) for x in present.values())}")


def check_contiguous(name: str, x: Tensor) -> None:
    if not x.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {list(x.stride())} for shape {list(x.shape)}")


def check_positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{name} must be more than 0, got {value}")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
