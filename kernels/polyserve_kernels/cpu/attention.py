"""Causal attention, packed or paged (kernels/csrc/attention.cpp).   q [T, Hq, D]   keys and values [., Hkv, D]

Gradients, which packed attention has (kernels/csrc/attention_gradient.cpp), are computed in float32, from the results
and log-sum-exps of the forward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyserve_kernels.autograd import differentiable
from polyserve_kernels.cpu.library import Attention, AttentionGradient, call, rows
from polyserve_kernels.types import BlockCache, Scoring


def _attention_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    lse = torch.full(q.shape[:2], -torch.inf)
    k, v = rows(k), rows(v)
    out = _attend(
        q, k, v, scoring, lse=lse, cu_seqlens_q=cu_seqlens.contiguous(), S=len(cu_seqlens) - 1, cache_dtype=k.dtype
    )
    return out, lse


def _gradients(
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Scoring, Tensor, Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],  # noqa: ARG001  (all three come out of one pass)
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
    q, k, v, cu_seqlens, scoring, out, lse = saved
    if grads[0] is None:
        return None, None, None, None, None
    q, k, v, d_out = rows(q), rows(k), rows(v), grads[0].contiguous()
    num_groups = q.shape[1] // k.shape[1]
    key_dtype = k.dtype if num_groups == 1 else torch.float32
    dq, dk, dv = (torch.empty(q.shape, dtype=dtype) for dtype in (q.dtype, key_dtype, key_dtype))
    call(
        "ps_attention_gradient", AttentionGradient, out=out, d_out=d_out, lse=lse, cu_seqlens=cu_seqlens.contiguous(),
        dq=dq, dk=dk, dv=dv, S=len(cu_seqlens) - 1, key_gradient_dtype=key_dtype, **_inputs(q, k, v, scoring),
    )  # fmt: skip
    if num_groups > 1:
        dk, dv = (x.view(len(x), -1, num_groups, x.shape[2]).sum(2).to(k.dtype) for x in (dk, dv))
    return dq, dk, dv, None, None


attention_varlen = differentiable(_attention_varlen, _gradients, save=lambda args, results: (*args, *results))


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
    out = torch.zeros(q.shape, dtype=q.dtype)
    call("ps_attention", Attention, out=out, **_inputs(q, k, v, scoring), **fields)
    return out


def _inputs(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> dict[str, Any]:
    """The fields for tensors whose last dimension is contiguous."""
    slopes = None if scoring.alibi_slopes is None else scoring.alibi_slopes.contiguous()
    return {
        "q": q, "k": k, "v": v, "alibi_slopes": slopes, "Hq": q.shape[1], "Hkv": k.shape[1], "D": q.shape[2],
        "window": scoring.window, "scale": scoring.scale, "soft_cap": scoring.soft_cap, "dtype": q.dtype,
        "q_token": q.stride(0), "q_head": q.stride(1), "k_token": k.stride(0), "k_head": k.stride(1),
        "v_token": v.stride(0), "v_head": v.stride(1),
    }  # fmt: skip
