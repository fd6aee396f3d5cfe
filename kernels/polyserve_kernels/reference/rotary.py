"""Rotary positions: of a head's R leading elements each pair (a, b) turns to (a cos - b sin, b cos + a sin), float32.

Pairs   half layout: elements i and i + R / 2      interleaved: elements 2i and 2i + 1
Shapes  q [T, Hq, D]   k [T, Hkv, D]   cos, sin [T, R / 2]
"""

import torch
from torch import Tensor


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> tuple[Tensor, Tensor]:
    return rotate(q, cos, sin, interleaved=interleaved), rotate(k, cos, sin, interleaved=interleaved)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """x [T, H, D] turned, in x's dtype."""
    size = 2 * cos.shape[1]
    turning = x[..., :size].float()
    cos, sin = cos[:, None], sin[:, None]  # [T, 1, R / 2]
    a, b = (turning[..., 0::2], turning[..., 1::2]) if interleaved else turning.chunk(2, dim=-1)
    turned = (a * cos - b * sin, b * cos + a * sin)
    whole = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    whole = whole.to(x.dtype)
    return whole if size == x.shape[2] else torch.cat((whole, x[..., size:]), dim=-1)
