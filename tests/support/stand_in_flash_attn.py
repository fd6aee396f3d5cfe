"""The two functions of flash-attn 2 that are used, in plain torch, as its documentation describes them: causal masks
aligned to the last key, window_size = (keys before, keys after), ALiBi by absolute distance, log-sum-exp [Hq, T]."""

import torch
from torch import Tensor


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    *, softmax_scale: float, causal: bool, window_size: tuple[int, int], softcap: float, alibi_slopes: Tensor | None,
    deterministic: bool = False, return_attn_probs: bool = False, block_table: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, None]:  # fmt: skip
    out, lse = torch.zeros_like(q), q.new_zeros(q.shape[1], q.shape[0], dtype=torch.float32)
    for s in range(len(cu_seqlens_q) - 1):
        rows = slice(int(cu_seqlens_q[s]), int(cu_seqlens_q[s + 1]))
        start, end = int(cu_seqlens_k[s]), int(cu_seqlens_k[s + 1])
        assert rows.stop - rows.start <= max_seqlen_q
        assert end - start <= max_seqlen_k
        if rows.stop == rows.start or end == start:
            continue
        if block_table is None:
            keys, values = k[start:end], v[start:end]
        else:
            keys, values = (x[block_table[s].long()].flatten(0, 1)[: end - start] for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q[rows].float(), _per_query_head(keys, q)) * softmax_scale
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        at = torch.arange(rows.stop - rows.start)[:, None] + (end - start) - (rows.stop - rows.start)
        j = torch.arange(end - start)[None]
        if alibi_slopes is not None:
            scores = scores - alibi_slopes[:, None, None] * (at - j).abs()
        hidden = (j > at) if causal else torch.zeros_like(at - j, dtype=torch.bool)
        if window_size != (-1, -1):
            hidden = hidden | (j < at - window_size[0]) | (j > at + window_size[1])
        scores = scores.masked_fill(hidden, -torch.inf)
        lse[:, rows] = scores.logsumexp(-1)
        out[rows] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), _per_query_head(values, q)).to(q.dtype)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor,
    *, cache_seqlens: Tensor, block_table: Tensor, softmax_scale: float, causal: bool, window_size: tuple[int, int],
    softcap: float, alibi_slopes: Tensor | None,
) -> Tensor:  # fmt: skip
    count = len(q)
    lens = torch.nn.functional.pad(cache_seqlens.cumsum(0), (1, 0))
    out = flash_attn_varlen_func(
        q[:, 0], k_cache, v_cache, torch.arange(count + 1), lens, 1, block_table.shape[1] * k_cache.shape[1],
        softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
        alibi_slopes=alibi_slopes, block_table=block_table,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out[:, None]


def _per_query_head(x: Tensor, q: Tensor) -> Tensor:
    return x.float().repeat_interleave(q.shape[1] // x.shape[1], dim=1)
