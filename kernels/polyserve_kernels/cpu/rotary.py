"""Rotary positions (kernels/csrc/rotary.cpp).   q [T, Hq, D]   k [T, Hkv, D]   cos, sin [T, R / 2]"""

from typing import Any

import torch
from torch import Tensor

from polyserve_kernels.cpu.library import Rotary, call, rows


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> tuple[Tensor, Tensor]:
    q, k, cos, sin = rows(q), rows(k), cos.contiguous(), sin.contiguous()
    q_out, k_out = torch.empty(q.shape, dtype=q.dtype), torch.empty(k.shape, dtype=k.dtype)
    call("ps_rotary", Rotary, q_out=q_out, k_out=k_out, **heads(q, k), **angles(cos, sin, interleaved=interleaved))
    return q_out, k_out


def heads(q: Tensor, k: Tensor) -> dict[str, Any]:
    return {
        "q": q, "k": k, "dtype": q.dtype, "T": q.shape[0], "Hq": q.shape[1], "Hkv": k.shape[1], "D": q.shape[2],
        "q_token": q.stride(0), "q_head": q.stride(1), "k_token": k.stride(0), "k_head": k.stride(1),
    }  # fmt: skip


def angles(cos: Tensor | None, sin: Tensor | None, *, interleaved: bool) -> dict[str, Any]:
    return {"cos": cos, "sin": sin, "R": 0 if cos is None else 2 * cos.shape[1], "interleaved": interleaved}
