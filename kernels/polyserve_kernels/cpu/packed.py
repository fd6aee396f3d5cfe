"""Weights in the layout that products read (kernels/csrc/weight.h), or as torch keeps them.

A weight [N, K] is an array of `Weight` structs, one for each part: `PackedWeight.handle`, or made for a tensor.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyserve_kernels import memory
from polyserve_kernels.cpu.library import DTYPES, Pack, Unpack, Weight, call, library, rows
from polyserve_kernels.types import PackedPart, PackedWeight, QuantizedWeight, WeightFormat

_INTEGERS, _FLOATS = -1, -2  # beside GGML's numbers


def structs(w: Tensor | PackedWeight) -> Any:
    """An array of structs that describe w. A tensor's last dimension must be contiguous, and outlive the array."""
    if isinstance(w, PackedWeight):
        return w.handle
    return (Weight * 1)(
        Weight(data=w.data_ptr(), rows=w.shape[0], channels=w.shape[1], stride=w.stride(0), dtype=DTYPES[w.dtype])
    )


def packed_weight(parts: Sequence[tuple[int, WeightFormat]], channels: int) -> PackedWeight:
    handle, made = (Weight * len(parts))(), []
    for struct, (num_rows, form) in zip(handle, parts, strict=True):
        struct.rows, struct.channels, struct.bits, struct.offset = num_rows, channels, form.bits, form.offset
        struct.dtype = DTYPES[form.dtype or torch.float32]
        struct.group, struct.block, struct.scale_dtype = form.group, form.block, DTYPES[form.scale_dtype]
        struct.has_min, struct.two_level = form.has_minimum, form.two_level
        values = memory.zeros((library().ps_packed_bytes(ctypes.byref(struct)),), torch.uint8)
        struct.data = values.data_ptr()
        made.append(PackedPart(form, num_rows, values))
    return PackedWeight(tuple(made), channels, handle)


def pack(w: PackedWeight, source: Tensor | QuantizedWeight, to_rows: Tensor, *, part: int, first_channel: int) -> None:
    fields: dict[str, Any] = {"weight": w.handle[part], "rows": to_rows.contiguous(), "num_rows": len(to_rows)}
    form = w.parts[part].form
    if isinstance(source, QuantizedWeight):
        scales = source.scales
        fields |= {
            "source": source.values, "row_stride": source.values.stride(0), "gguf_type": _INTEGERS, "scales": scales,
            "minimums": source.minimums, "scale_row": scales.stride(0),
            "scale_group": 0 if scales.shape[1] == 1 else scales.stride(1),
        }  # fmt: skip
    elif form.bits:
        source = rows(source)
        fields |= {"source": source, "row_stride": source.stride(0), "gguf_type": form.gguf_type}
    else:
        fields |= {
            "source": source, "row_stride": source.stride(0), "channel_stride": source.stride(1), "gguf_type": _FLOATS,
            "source_dtype": source.dtype, "first_channel": first_channel, "num_channels": source.shape[1],
        }  # fmt: skip
    call("ps_pack", Pack, **fields)


def unpacked(w: Tensor | PackedWeight, ids: Tensor) -> Tensor:
    """Rows of w in float32, [len(ids), K]."""
    if isinstance(w, Tensor):
        return w[ids].float()
    ids, y = ids.contiguous(), torch.empty(len(ids), w.channels)
    call("ps_unpack", Unpack, weights=w.handle, num_weights=len(w.handle), rows=ids, num_rows=len(ids), y=y)
    return y
