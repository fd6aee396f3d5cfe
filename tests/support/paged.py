"""Packed keys and values laid out in a paged cache, in blocks of random order, everything unused poisoned with NaN."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.types import BlockCache


@dataclass(frozen=True)
class Paged:
    cache: BlockCache
    block_tables: Tensor  # [S, max_blocks] int32
    slots: list[Tensor]  # of each sequence's tokens, int64


def empty_pages(lens: list[int], *, block_size: int, kv_heads: int, head_size: int, dtype: torch.dtype) -> Paged:
    """Room for sequences of these lengths, and blocks to spare."""
    needed = [-(-length // block_size) for length in lens]
    num_blocks = sum(needed) + 3
    tables = torch.full((len(lens), max([*needed, 1]) + 1), -1, dtype=torch.int32)
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(len(lens)), device="cpu")
    free = order.to(tables.device)
    slots = []
    for s, (length, count) in enumerate(zip(lens, needed, strict=True)):
        blocks, free = free[:count], free[count:]
        tables[s, :count] = blocks.int()
        slots.append((blocks[:, None] * block_size + torch.arange(block_size)).flatten()[:length])
    shape = (num_blocks, block_size, kv_heads, head_size)
    return Paged(block_cache(shape, dtype), tables, slots)


def block_cache(shape: tuple[int, int, int, int], dtype: torch.dtype) -> BlockCache:
    """A cache [num_blocks, block_size, Hkv, D] full of NaN, or with NaN for every scale."""
    if dtype.is_floating_point and dtype.itemsize > 1:
        return BlockCache(torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype))
    scales = torch.full((2, *shape[:3]), torch.nan)
    return BlockCache(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), scales[0], scales[1])


def write(pages: Paged, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Write keys and values [T, Hkv, D] as they are."""
    q = torch.zeros(k.shape[0], k.shape[1], k.shape[2], dtype=k.dtype)
    ops.rotary_write_kv(q, k, v, None, None, pages.cache, slots)
