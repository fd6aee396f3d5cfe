"""How quantised values are chosen: a matrix of floats becomes small integers with a scale for each group of channels.

int8   scale = largest magnitude / 127                values from -127 to 127, a group or a whole row
int4   scale = (largest - smallest) / 15, minimum = smallest      values from 0 to 15, a group
Scales of groups, and minimums, are bfloat16, whose range is that of the weights; a row's scale is float32. Scales are
rounded up, so that no value is cut off, and values are chosen for what they were rounded to.
Shapes  w [N, K]   G groups of K / G channels
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyserve_kernels.types import QuantizedWeight

DEFAULT_GROUP = 32  # of int4
GROUPS = (16, 32, 64, 128)
ELEMENTS_AT_A_TIME = 2**22  # whose temporary floats are held


@dataclass(frozen=True, slots=True)
class Scheme:
    """`group` channels share a scale; None: a whole row, for int8 alone."""

    name: Literal["int8", "int4"]
    group: int | None = None

    def __post_init__(self) -> None:
        if self.name == "int4" and self.group is None:
            raise ValueError("group must be given for int4")
        if self.group is not None and self.group not in GROUPS:
            raise ValueError(f"group must be one of {', '.join(map(str, GROUPS))}, got {self.group}")

    def __str__(self) -> str:
        return self.name if self.group is None else f"{self.name}_g{self.group}"

    def quantize(self, w: Tensor) -> QuantizedWeight:
        """w: [N, K] floats. Raises ValueError if K is not a multiple of the group, or a value is not finite."""
        num_rows, channels = w.shape
        group = self.group or channels
        if channels % group:
            raise ValueError(f"{channels} channels are not a multiple of groups of {group}")
        at_once = max(1, ELEMENTS_AT_A_TIME // channels)
        parts = [self._rows(w[first : first + at_once].float(), group) for first in range(0, num_rows, at_once)]
        values, scales, minimums = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        if not scales.isfinite().all():
            raise ValueError("a value is not finite")
        return QuantizedWeight(
            scheme=self.name, values=values, scales=scales, minimums=minimums if self.name == "int4" else None
        )

    def _rows(self, w: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
        groups = w.view(len(w), -1, group)
        if self.name == "int8":
            scales = groups.abs().amax(-1) / 127
            scales = scales if self.group is None else _rounded_up(scales)
            values = _divided(groups, scales).clamp_(-127, 127).to(torch.int8)
            return values.flatten(1), scales, scales
        smallest, largest = groups.aminmax(dim=-1)
        minimums = smallest.bfloat16()
        scales = _rounded_up(((largest - minimums) / 15).clamp(min=0))
        values = _divided(groups - minimums[..., None], scales).clamp_(0, 15).to(torch.uint8).flatten(1)
        return values[:, ::2] | values[:, 1::2] << 4, scales, minimums


def _rounded_up(x: Tensor) -> Tensor:
    """The least bfloat16 that is not below x, which is not negative."""
    nearest = x.bfloat16()
    return (nearest.view(torch.int16) + (nearest.float() < x)).view(torch.bfloat16)


def _divided(groups: Tensor, scales: Tensor) -> Tensor:
    """To the nearest integers; a group whose scale is 0 has zeros."""
    inverse = torch.where(scales == 0, 0.0, 1 / scales.float())
    return (groups * inverse[..., None]).round_()
