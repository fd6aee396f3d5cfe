"""Weights rounded to a few bits, for tests that multiply them, and what such a weight stands for, in float64."""

import torch
from torch import Tensor

from polyserve_kernels.types import QuantizedWeight

_LARGEST = {"int8": 127, "fp8": 448}


def quantized(
    w: Tensor, scheme: str, group: int | None = None, scale_dtype: torch.dtype = torch.float32
) -> QuantizedWeight:
    """w [N, K] rounded to the nearest that the scheme has.  group: channels of a scale; None: all of a row."""
    groups = w.float().view(w.shape[0], -1, group or w.shape[1])
    if scheme == "int4":
        lowest, highest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scales, minimums = ((highest - lowest) / 15).to(scale_dtype), lowest.to(scale_dtype)
        numbers = ((groups - minimums.float()) / scales.float()).round().clamp(0, 15).to(torch.uint8).view(w.shape)
        packed = numbers[:, 0::2] | numbers[:, 1::2] << 4
        return QuantizedWeight(scheme="int4", values=packed, scales=scales[..., 0], minimums=minimums[..., 0])
    scales = (groups.abs().amax(-1, keepdim=True) / _LARGEST[scheme]).to(scale_dtype)
    numbers = (groups / scales.float()).view(w.shape)
    if scheme == "fp8":
        return QuantizedWeight(scheme="fp8", values=numbers.to(torch.float8_e4m3fn), scales=scales[..., 0])
    values = numbers.round().clamp(-127, 127).to(torch.int8)
    return QuantizedWeight(scheme="int8", values=values, scales=scales[..., 0])


def exact(w: QuantizedWeight) -> Tensor:
    """The weight [N, K], values * scale + minimum without any rounding, in float64."""
    if w.scheme == "int4":
        values = torch.empty(w.num_outputs, w.channels, dtype=torch.float64, device=w.values.device)
        values[:, 0::2], values[:, 1::2] = w.values % 16, w.values // 16
    else:
        values = w.values.double()
    scales, minimums = (
        w.scales.double(),
        0 if w.minimums is None else w.minimums.double().repeat_interleave(w.group_size, 1),
    )
    return values * scales.repeat_interleave(w.group_size, 1) + minimums
