"""Attention as its formula says, sequence by sequence, in its inputs' dtype: eager torch, and in float64 the truth.

q [T, Hq, D]   k, v [T, Hkv, D]   lens: tokens of each sequence
"""

import torch
from torch import Tensor


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lens: list[int],
    *,
    scale: float,
    alibi_slopes: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    results = []
    for q_one, k_one, v_one in zip(q.split(lens), k.split(lens), v.split(lens), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q_one, k_one) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        token = torch.arange(len(q_one))
        distance = token[None, :] - token[:, None]
        if alibi_slopes is not None:
            scores = scores + (alibi_slopes.to(q.dtype)[:, None, None] * distance).to(q.dtype)
        hidden = distance > 0
        if window is not None:
            hidden = hidden | (distance <= -window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        results.append(torch.einsum("hij,jhd->ihd", weights, v_one))
    return torch.cat(results)
