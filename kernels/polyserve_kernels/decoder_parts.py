"""What a backend needs of a decoder to compute a whole forward pass in one call: weights and how they are put together.

The pass is that of `polyserve.model.decoder`; shapes are those of the operations in `ops.py` that it is made of.
C hidden size   F mlp size   Hq, Hkv heads of size D   R rotating elements   V vocabulary
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyserve_kernels.types import PackedWeight, Scoring


@dataclass(frozen=True, slots=True)
class NormParts:
    """An RMSNorm, or a LayerNorm if it has a bias. Its weights are float32."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class LinearParts:
    weight: Tensor | PackedWeight  # [N, K]
    bias: Tensor | None  # [N], of the decoder's dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
    qkv: LinearParts
    out: LinearParts
    up: LinearParts  # 2 F rows if the activation is gated: gates, then what they are multiplied with
    down: LinearParts
    attention_norm: NormParts
    mlp_norm: NormParts
    q_norm: NormParts | None
    k_norm: NormParts | None
    attention_post_norm: NormParts | None
    mlp_post_norm: NormParts | None
    angles: tuple[Tensor, Tensor] | None  # cos and sin [max_len, R / 2] float32
    scoring: Scoring  # windows alone may differ between layers


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderParts:
    dtype: torch.dtype
    num_heads: int
    num_kv_heads: int
    head_size: int
    activation: Literal["gelu", "gated_silu", "gated_gelu"]
    interleaved: bool  # rotary pairs are neighbours
    eps: float  # of every norm
    words: Tensor | PackedWeight  # [V, C]
    words_scale: float
    position_table: Tensor | None  # [max_len, C]
    position_scale: float
    embedding_norm: NormParts | None
    layers: tuple[LayerParts, ...]
    norm: NormParts
