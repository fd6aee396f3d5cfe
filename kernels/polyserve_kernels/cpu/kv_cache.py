"""Keys and values into their slots (kernels/csrc/rotary.cpp); copying blocks is torch's.   k, v [T, Hkv, D]"""

import torch
from torch import Tensor

from polyserve_kernels.cpu.library import Rotary, call, rows
from polyserve_kernels.cpu.rotary import angles, heads
from polyserve_kernels.reference.kv_cache import copy_blocks
from polyserve_kernels.types import BlockCache

__all__ = ["copy_blocks", "rotary_write_kv"]


def rotary_write_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    cache: BlockCache,
    slot_mapping: Tensor,
    *,
    interleaved: bool,
) -> Tensor:
    q, k, v, slots = rows(q), rows(k), rows(v), slot_mapping.contiguous()
    cos, sin = (None if x is None else x.contiguous() for x in (cos, sin))
    q_out = torch.empty(q.shape, dtype=q.dtype)
    call(
        "ps_rotary", Rotary, v=v, q_out=q_out, k_cache=cache.k, v_cache=cache.v, k_scales=cache.k_scales,
        v_scales=cache.v_scales, slots=slots, num_slots=cache.k.shape[0] * cache.k.shape[1], v_token=v.stride(0),
        v_head=v.stride(1), cache_dtype=cache.k.dtype, **heads(q, k), **angles(cos, sin, interleaved=interleaved),
    )  # fmt: skip
    return q_out
