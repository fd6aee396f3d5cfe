"""What attention is tried with: options, random heads, and tokens that come to the paged cache step by step."""

from typing import Any

import torch
from torch import Tensor

from polyserve_kernels import ops
from support.paged import empty_pages, write

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window of one": {"window": 1},
    "window": {"window": 100},
    "window of a tile": {"window": 128},
    "soft cap": {"soft_cap": 2.0},
    "alibi": {"alibi_slopes": (0.5, 0.25, 0.125, 0.0625, 0.3, 0.01)},
    "all": {"window": 70, "soft_cap": 3.0, "alibi_slopes": (0.5, 0.25, 0.125, 0.0625, 0.3, 0.01)},
}


def as_given(option: dict[str, Any], query_heads: int = 6) -> dict[str, Any]:
    """The options as an operation takes them."""
    return {name: torch.tensor(x[:query_heads]) if name == "alibi_slopes" else x for name, x in option.items()}


def bounds(lens: list[int]) -> Tensor:
    return torch.tensor([0, *lens]).cumsum(0).int()


def heads(num_tokens: int, query_heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k and v."""
    shapes = ((num_tokens, query_heads, size), (num_tokens, kv_heads, size), (num_tokens, kv_heads, size))
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def by_steps(
    q: Tensor, k: Tensor, v: Tensor, lens: list[int], cuts: list[list[int]], *, block_size: int = 16, **option: Any
) -> Tensor:
    """Results of all tokens, where sequence s's tokens come in chunks that end at cuts[s], one of each a step.

    As an engine does, a step decodes the chunks of one token and prefills the others.
    """
    pages = empty_pages(lens, block_size=block_size, kv_heads=k.shape[1], head_size=k.shape[2], dtype=k.dtype)
    out, first = torch.full_like(q, torch.nan), bounds(lens).tolist()
    done = [0] * len(lens)
    for step in range(max(map(len, cuts))):
        chunks = [(s, done[s], cuts[s][step]) for s in range(len(lens)) if step < len(cuts[s])]
        for decoded in (True, False):
            some = [(s, start, end) for s, start, end in chunks if (end - start == 1) == decoded]
            if not some:
                continue
            rows = torch.cat([torch.arange(first[s] + start, first[s] + end) for s, start, end in some])
            write(pages, k[rows], v[rows], torch.cat([pages.slots[s][start:end] for s, start, end in some]))
            tables = pages.block_tables[[s for s, _, _ in some]]
            caches = (pages.cache, tables, torch.tensor([end for _, _, end in some]).int())
            if decoded:
                out[rows] = ops.paged_decode(q[rows], *caches, scale=0.2, **option)
            else:
                cu_seqlens_q = bounds([end - start for _, start, end in some])
                out[rows] = ops.paged_prefill(q[rows], *caches, cu_seqlens_q, scale=0.2, **option)
        for s, _, end in chunks:
            done[s] = end
    return out
