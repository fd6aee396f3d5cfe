"""Writing keys and values into their slots of the paged cache, and copying blocks.

Shapes  k, v [T, Hkv, D]   k_cache, v_cache [num_blocks, block_size, Hkv, D]   slot = block * block_size + offset
"""

from torch import Tensor

from polyserve_kernels.reference.rotary import rotate


def rotary_write_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
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
    for cache, x in ((k_cache, k), (v_cache, v)):
        cache.flatten(0, 1).index_copy_(0, slot_mapping, x.to(cache.dtype))
    return q


def copy_blocks(k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
    source, destination = pairs.unbind(1)
    for cache in (k_cache, v_cache):
        cache.index_copy_(0, destination, cache.index_select(0, source))
