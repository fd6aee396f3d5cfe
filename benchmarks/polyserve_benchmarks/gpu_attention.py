"""Attention at the sizes of PolyLM-13B and, with grouped queries, of Llama-3.1-8B, beside torch and flash-attn.

Torch has no paged attention: its call is given the keys and values side by side, without the gathering.
T rows   S sequences   Hq, Hkv heads of size D
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from polyserve_benchmarks.gpu_cases import Case, Maker, Sizes, bytes_of, with_flash
from polyserve_kernels import ops
from polyserve_kernels.types import BlockCache


def cases(sizes: Sizes, device: str) -> list[Callable[[], Case]]:
    """Makers of the cases, so that only one holds memory at a time."""
    make = Maker(device)
    return [
        partial(case, sizes, make, kv_heads)
        for case in (_varlen, _prefill, _decode)
        for kv_heads in (sizes.heads, sizes.kv_heads)
    ]


def _heads_first(x: Tensor) -> Tensor:
    """[T, H, D] -> [1, H, T, D]"""
    return x.transpose(0, 1)[None]


def _varlen(sizes: Sizes, make: Maker, kv_heads: int) -> Case:
    rows, head_size = sizes.rows, sizes.head_size
    q = make(rows, sizes.heads, head_size).requires_grad_()
    k, v = (make(rows, kv_heads, head_size).requires_grad_() for _ in range(2))
    cu_seqlens = make.int32(0, rows)
    scale = head_size**-0.5

    def ours() -> Tensor:
        return ops.attention_varlen(q, k, v, cu_seqlens, scale=scale)

    def plain() -> Tensor:
        out = F.scaled_dot_product_attention(
            _heads_first(q), _heads_first(k), _heads_first(v), is_causal=True, scale=scale, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    flops = 2 * sizes.heads * head_size * rows * (rows + 1)
    forward = 2 * bytes_of(q) + bytes_of(k, v)
    return Case(
        name="attention_varlen",
        configuration=f"{rows} tokens, {sizes.heads} and {kv_heads} heads of {head_size}",
        ours=ours,
        peers={"torch": plain, **with_flash(ours, device=make.device)},
        num_bytes=forward,
        flops=flops,
        leaves=(q, k, v),
        both_bytes=forward + 2 * forward + bytes_of(q),
        both_flops=flops + flops * 5 // 2,  # five products after two
    )


def _paged(sizes: Sizes, make: Maker, kv_heads: int, num_sequences: int, block: int) -> tuple[BlockCache, Tensor]:
    """A cache that holds the whole context of each sequence, and its block tables."""
    per_sequence = sizes.context // block
    cache = make.cache(num_sequences * per_sequence, block, kv_heads, sizes.head_size)
    order = torch.randperm(num_sequences * per_sequence, device=make.device)
    return cache, order.view(num_sequences, per_sequence).int()


def _side_by_side(cache: BlockCache, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of each sequence, [S, Hkv, context, D]."""
    k, v = (part[tables.long()].flatten(1, 2).transpose(1, 2).contiguous() for part in (cache.k, cache.v))
    return k, v


def _prefill(sizes: Sizes, make: Maker, kv_heads: int) -> Case:
    rows, context = sizes.rows // 4, sizes.context
    q = make(rows, sizes.heads, sizes.head_size)
    cache, tables = _paged(sizes, make, kv_heads, 1, sizes.flash_block)
    lengths, cu_seqlens_q = make.int32(context), make.int32(0, rows)
    scale = sizes.head_size**-0.5
    k, v = _side_by_side(cache, tables)
    visible = torch.ones(rows, context, dtype=torch.bool, device=make.device).tril(context - rows)

    def ours() -> Tensor:
        return ops.paged_prefill(q, cache, tables, lengths, cu_seqlens_q, scale=scale)

    def plain() -> Tensor:
        out = F.scaled_dot_product_attention(_heads_first(q), k, v, attn_mask=visible, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1)

    return Case(
        name="paged_prefill",
        configuration=f"{rows} of {context} tokens, {sizes.heads} and {kv_heads} heads of {sizes.head_size}",
        ours=ours,
        peers={"torch": plain, **with_flash(ours, device=make.device)},
        num_bytes=2 * bytes_of(q) + bytes_of(cache.k, cache.v),
        flops=4 * sizes.heads * sizes.head_size * int(visible.sum()),
    )


def _decode(sizes: Sizes, make: Maker, kv_heads: int) -> Case:
    q = make(sizes.sequences, sizes.heads, sizes.head_size)
    cache, tables = _paged(sizes, make, kv_heads, sizes.sequences, sizes.flash_block)
    lengths = make.int32(*[sizes.context] * sizes.sequences)
    scale = sizes.head_size**-0.5
    k, v = _side_by_side(cache, tables)

    def ours() -> Tensor:
        return ops.paged_decode(q, cache, tables, lengths, scale=scale)

    def plain() -> Tensor:
        return F.scaled_dot_product_attention(q[:, :, None], k, v, scale=scale, enable_gqa=True)[:, :, 0]

    return Case(
        name="paged_decode",
        configuration=f"{sizes.sequences} x {sizes.context} tokens, {sizes.heads} and {kv_heads} heads of "
        f"{sizes.head_size}",
        ours=ours,
        peers={"torch": plain, **with_flash(ours, device=make.device)},
        num_bytes=2 * bytes_of(q) + bytes_of(cache.k, cache.v),
        flops=4 * sizes.heads * sizes.head_size * sizes.sequences * sizes.context,
    )
