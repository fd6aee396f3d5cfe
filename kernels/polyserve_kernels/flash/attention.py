"""Attention by flash-attn 2: its splits over keys follow the shape of the batch, so a row's bits depend on its company.

Limits   bfloat16 and float16, head sizes to 256, caches in the queries' dtype with blocks of a multiple of 256 tokens
Spec     reference/attention.py    Source  https://arxiv.org/abs/2307.08691
Lengths  the longest of a batch are only bounds for the library, so they come from shapes and nothing waits for the GPU
"""

from typing import Any

import torch
from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
from torch import Tensor

from polyserve_kernels.types import BlockCache, Scoring

BLOCK_MULTIPLE = 256
_MAX_HEAD_SIZE = 256


def attention_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    _check(q)
    longest = q.shape[0]
    if longest == 0:
        return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    out, lse, _ = flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest,
        deterministic=True, return_attn_probs=True, **_options(scoring),
    )  # fmt: skip
    return out, lse.detach().t().contiguous()


def paged_prefill(
    q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor, cu_seqlens_q: Tensor, scoring: Scoring
) -> Tensor:
    _check(q, cache)
    if q.shape[0] == 0:
        return torch.empty_like(q)
    cu_seqlens_k = torch.nn.functional.pad(seq_lens.cumsum(0), (1, 0)).int()
    longest_k = block_tables.shape[1] * cache.k.shape[1]
    out: Tensor = flash_attn_varlen_func(
        q, cache.k, cache.v, cu_seqlens_q, cu_seqlens_k, q.shape[0], longest_k,
        block_table=block_tables.clamp(min=0), **_options(scoring),
    )  # fmt: skip
    return out


def paged_decode(q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor, scoring: Scoring) -> Tensor:
    _check(q, cache)
    if q.shape[0] == 0:
        return torch.empty_like(q)
    out: Tensor = flash_attn_with_kvcache(
        q[:, None], cache.k, cache.v,
        cache_seqlens=seq_lens, block_table=block_tables.clamp(min=0), **_options(scoring),
    )  # fmt: skip
    return out[:, 0]


def _options(scoring: Scoring) -> dict[str, Any]:
    return {
        "softmax_scale": scoring.scale,
        "causal": True,
        "window_size": (-1, -1) if scoring.window is None else (scoring.window - 1, 0),  # keys before the query's own
        "softcap": scoring.soft_cap or 0.0,
        "alibi_slopes": scoring.alibi_slopes,
    }


def _check(q: Tensor, cache: BlockCache | None = None) -> None:
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"flash-attn takes q in bfloat16 or float16, got {q.dtype}")
    if q.shape[2] > _MAX_HEAD_SIZE:
        raise ValueError(f"flash-attn takes head sizes up to {_MAX_HEAD_SIZE}, got {q.shape[2]}")
    if cache is None:
        return
    if cache.k.dtype != q.dtype:
        raise ValueError(f"flash-attn takes a cache in q's dtype, {q.dtype}, got {cache.k.dtype}")
    if cache.k.shape[1] % BLOCK_MULTIPLE:
        raise ValueError(f"flash-attn takes block_size in multiples of {BLOCK_MULTIPLE}, got {cache.k.shape[1]}")
