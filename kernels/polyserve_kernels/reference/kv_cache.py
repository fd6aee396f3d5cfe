"""Writing keys and values into their slots of the paged cache, and copying blocks.

Scales  of int8 and float8_e4m3fn, one for each token and head: scale = max |x| / LARGEST, stored = x / scale, rounded
        to the nearest, ties to even; a head of zeros has scale 0
Shapes  k, v [T, Hkv, D]   caches [num_blocks, block_size, Hkv, D]   slot = block * block_size + offset
"""

import torch
from torch import Tensor

from polyserve_kernels.reference.rotary import rotate
from polyserve_kernels.types import BlockCache

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


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
    if cos is not None and sin is not None:
        q, k = rotate(q, cos, sin, interleaved=interleaved), rotate(k, cos, sin, interleaved=interleaved)
    else:
        q = q.clone()
    if bool((slot_mapping < 0).any()):
        written = (slot_mapping >= 0).nonzero().squeeze(1)
        k, v, slot_mapping = k[written], v[written], slot_mapping[written]
    for stored, scales, x in ((cache.k, cache.k_scales, k), (cache.v, cache.v_scales, v)):
        if scales is None:
            stored.flatten(0, 1).index_copy_(0, slot_mapping, x.to(stored.dtype))
        else:
            numbers, scale = quantize(x, stored.dtype)
            as_bytes(stored).flatten(0, 1).index_copy_(0, slot_mapping, as_bytes(numbers))
            scales.flatten(0, 1).index_copy_(0, slot_mapping, scale)
    return q


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [T, H, D] as numbers of dtype, and their scales [T, H] float32."""
    x = x.float()
    scale = x.abs().amax(-1) / LARGEST[dtype]
    numbers = x / scale.where(scale > 0, 1.0)[..., None]
    return (numbers.round() if dtype == torch.int8 else numbers).to(dtype), scale


def as_bytes(x: Tensor) -> Tensor:
    """The same memory as int8: torch neither gathers nor scatters float8."""
    return x.view(torch.int8)


def copy_blocks(cache: BlockCache, pairs: Tensor) -> None:
    source, destination = pairs.unbind(1)
    for x in (cache.k, cache.v, cache.k_scales, cache.v_scales):
        if x is not None:
            bits = as_bytes(x) if x.dtype.itemsize == 1 else x
            bits.index_copy_(0, destination, bits.index_select(0, source))
