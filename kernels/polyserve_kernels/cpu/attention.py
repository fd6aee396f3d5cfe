"""Causal attention, packed or paged (kernels/csrc/attention.cpp).   q [T, Hq, D]   keys and values [., Hkv, D]"""

from typing import Any

import torch
from torch import Tensor

from polyserve_kernels.cpu.library import Attention, call, rows
from polyserve_kernels.types import BlockCache, Scoring


def attention_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    lse = torch.full(q.shape[:2], -torch.inf)
    k, v = rows(k), rows(v)
    out = _attend(
        q, k, v, scoring, lse=lse, cu_seqlens_q=cu_seqlens.contiguous(), S=len(cu_seqlens) - 1, cache_dtype=k.dtype
    )
    return out, lse


def paged_prefill(
    q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor, cu_seqlens_q: Tensor, scoring: Scoring
) -> Tensor:
    return _attend_cache(q, cache, block_tables, seq_lens, scoring, cu_seqlens_q=cu_seqlens_q.contiguous())


def paged_decode(q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor, scoring: Scoring) -> Tensor:
    return _attend_cache(q, cache, block_tables, seq_lens, scoring)


def _attend_cache(
    q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor, scoring: Scoring, **fields: Any
) -> Tensor:
    tables, lens = block_tables.contiguous(), seq_lens.contiguous()
    return _attend(
        q, cache.k.flatten(0, 1), cache.v.flatten(0, 1), scoring,
        k_scales=cache.k_scales, v_scales=cache.v_scales, block_tables=tables, seq_lens=lens, S=len(lens),
        max_blocks=tables.shape[1], block_size=cache.k.shape[1], cache_dtype=cache.k.dtype, **fields,
    )  # fmt: skip


def _attend(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, **fields: Any) -> Tensor:
    q = rows(q)
    slopes = None if scoring.alibi_slopes is None else scoring.alibi_slopes.contiguous()
    out = torch.zeros(q.shape, dtype=q.dtype)
    call(
        "ps_attention", Attention, q=q, k=k, v=v, alibi_slopes=slopes, out=out,
        Hq=q.shape[1], Hkv=k.shape[1], D=q.shape[2], window=scoring.window, scale=scoring.scale,
        soft_cap=scoring.soft_cap, dtype=q.dtype, q_token=q.stride(0), q_head=q.stride(1), k_token=k.stride(0),
        k_head=k.stride(1), v_token=v.stride(0), v_head=v.stride(1), **fields,
    )  # fmt: skip
    return out
