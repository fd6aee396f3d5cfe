"""Attention as its formula says, sequence by sequence, in its inputs' dtype: eager torch, and in float64 the truth.

q [T, Hq, D]   k, v [T, Hkv, D]   lens: tokens of each sequence
"""

from collections.abc import Iterator

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
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    scores = _scores(q, k, lens, scale, alibi_slopes, window, soft_cap)
    weights = [x.softmax(-1) for x in scores]
    return torch.cat([torch.einsum("hij,jhd->ihd", *pair) for pair in zip(weights, v.split(lens), strict=True)])


def plain_lse(
    q: Tensor,
    k: Tensor,
    lens: list[int],
    *,
    scale: float,
    alibi_slopes: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """The log-sum-exp of each row's scores, [T, Hq]."""
    scores = _scores(q, k, lens, scale, alibi_slopes, window, soft_cap)
    return torch.cat([x.logsumexp(-1).T for x in scores])


def _scores(
    q: Tensor,
    k: Tensor,
    lens: list[int],
    scale: float,
    alibi_slopes: Tensor | None,
    window: int | None,
    soft_cap: float | None,
) -> Iterator[Tensor]:
    """Of each sequence, [Hq, queries, keys]; -inf where a key is not seen."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    for q_one, k_one in zip(q.split(lens), k.split(lens), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q_one, k_one) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        token = torch.arange(len(q_one), device=q.device)
        distance = token[None, :] - token[:, None]
        if alibi_slopes is not None:
            scores = scores + (alibi_slopes.to(q.dtype)[:, None, None] * distance).to(q.dtype)
        hidden = distance > 0
        if window is not None:
            hidden = hidden | (distance <= -window)
        yield scores.masked_fill(hidden, -torch.inf)
