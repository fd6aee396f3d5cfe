"""Causal attention, packed or paged (kernels/csrc/attention.cpp).   q [T, Hq, D]   keys and values [., Hkv, D]

Gradients, which packed attention has, are those of torch's flash attention, a sequence at a time, from the results and
log-sum-exps of the forward pass: in float32, rounded once. It lacks groups of query heads, windows, ALiBi and soft
caps; with one of these the reference computes the operation once more.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from polyserve_kernels.autograd import differentiable, recomputed
from polyserve_kernels.cpu.library import Attention, call, rows
from polyserve_kernels.reference import attention as reference
from polyserve_kernels.types import BlockCache, Scoring


def attention_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    is_plain = not scoring.window and scoring.alibi_slopes is None and not scoring.soft_cap
    operation = _with_flash_gradients if is_plain and q.shape == k.shape == v.shape else _with_reference_gradients
    results: tuple[Tensor, Tensor] = operation(q, k, v, cu_seqlens, scoring)
    return results


def _attention_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    lse = torch.full(q.shape[:2], -torch.inf)
    k, v = rows(k), rows(v)
    out = _attend(
        q, k, v, scoring, lse=lse, cu_seqlens_q=cu_seqlens.contiguous(), S=len(cu_seqlens) - 1, cache_dtype=k.dtype
    )
    return out, lse


def _gradients(
    saved: tuple[Tensor, Tensor, Tensor, Tensor, float, Tensor, Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],  # noqa: ARG001  (all three come out of one pass)
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
    q, k, v, cu_seqlens, scale, out, lse = saved
    if grads[0] is None:
        return None, None, None, None, None
    wide = [x.float() for x in (grads[0], q, k, v, out)]
    found = tuple(torch.zeros(x.shape) for x in (q, k, v))
    for first, end in pairwise(cu_seqlens.tolist()):
        if first < end:
            heads = [x[first:end].transpose(0, 1)[None] for x in wide]  # [1, H, T, D]
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *heads, lse[first:end].t()[None], 0.0, True, scale=scale
            )
            for whole, part in zip(found, parts, strict=True):
                whole[first:end] = part[0].transpose(0, 1)
    dq, dk, dv = (x.to(q.dtype) for x in found)
    return dq, dk, dv, None, None


def _saved(args: tuple[Any, ...], results: tuple[Tensor, ...]) -> tuple[Any, ...]:
    *tensors, scoring = args
    return *tensors, scoring.scale, *results


_with_flash_gradients = differentiable(_attention_varlen, _gradients, save=_saved)
_with_reference_gradients = recomputed(_attention_varlen, reference.attention_varlen)


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
