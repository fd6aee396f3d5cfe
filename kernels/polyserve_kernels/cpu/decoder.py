"""A decoder's forward pass over the paged cache in one call (kernels/csrc/decoder.cpp)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyserve_kernels.cpu.library import Decoder, DecoderLayer, LinearWeights, NormWeights, call_with, filled
from polyserve_kernels.cpu.packed import structs
from polyserve_kernels.decoder_parts import DecoderParts, LayerParts, LinearParts, NormParts
from polyserve_kernels.types import BlockCache

_ACTIVATIONS = ("gelu", "gated_silu", "gated_gelu")  # in the order of kernels.h


class DecoderStep:
    """The forward pass of one decoder over one cache."""

    def __init__(self, parts: DecoderParts, caches: Sequence[BlockCache]) -> None:
        self._parts, self._caches = parts, caches
        self._held: list[Any] = []  # what structs point to, beside the parts
        self._layers = (DecoderLayer * len(parts.layers))(
            *(self._layer(*pair) for pair in zip(parts.layers, caches, strict=True))
        )
        cache, first = caches[0], parts.layers[0]
        words = self._linear(LinearParts(parts.words, None))
        self._decoder = filled(
            Decoder, layers=self._layers, num_layers=len(self._layers), words=words,
            words_scale=parts.words_scale, position_table=self._kept(parts.position_table),
            position_scale=parts.position_scale, embedding_norm=self._norm(parts.embedding_norm),
            norm=self._norm(parts.norm), alibi_slopes=self._kept(first.scoring.alibi_slopes), eps=parts.eps,
            scale=first.scoring.scale, soft_cap=first.scoring.soft_cap, C=parts.words.shape[1],
            F=first.down.weight.shape[1], Hq=parts.num_heads, Hkv=parts.num_kv_heads, D=parts.head_size,
            R=0 if first.angles is None else 2 * first.angles[0].shape[1], block_size=cache.k.shape[1],
            num_slots=cache.k.shape[0] * cache.k.shape[1], activation=_ACTIVATIONS.index(parts.activation),
            interleaved=parts.interleaved, dtype=parts.dtype, cache_dtype=cache.k.dtype,
        )  # fmt: skip

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        cu_seqlens_q: Tensor,
    ) -> Tensor:
        hidden = torch.empty(len(token_ids), self._parts.words.shape[1], dtype=self._parts.dtype)
        call_with(
            "ps_decoder", self._decoder, token_ids=token_ids, positions=positions, slots=slot_mapping,
            block_tables=block_tables, seq_lens=seq_lens, cu_seqlens_q=cu_seqlens_q, hidden=hidden, T=len(token_ids),
            S=len(seq_lens), max_blocks=block_tables.shape[1],
        )  # fmt: skip
        return hidden

    def _layer(self, layer: LayerParts, cache: BlockCache) -> Any:
        cos, sin = layer.angles or (None, None)
        linears = {name: self._linear(getattr(layer, name)) for name in ("qkv", "out", "up", "down")}
        names = ("attention_norm", "q_norm", "k_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
        norms = {name: self._norm(getattr(layer, name)) for name in names}
        return filled(
            DecoderLayer, **linears, **norms, cos=self._kept(cos), sin=self._kept(sin), k_cache=cache.k,
            v_cache=cache.v, k_scales=cache.k_scales, v_scales=cache.v_scales, window=layer.scoring.window,
        )  # fmt: skip

    def _linear(self, linear: LinearParts) -> Any:
        weight = linear.weight
        parts = structs(weight)
        self._held.append(parts)
        return filled(
            LinearWeights, weights=parts, bias=self._kept(linear.bias), num_weights=len(parts), N=weight.shape[0]
        )

    def _norm(self, norm: NormParts | None) -> Any:
        return None if norm is None else filled(NormWeights, weight=self._kept(norm.weight), bias=self._kept(norm.bias))

    def _kept(self, x: Tensor | None) -> Tensor | None:
        """x, contiguous, for as long as this is."""
        if x is not None:
            x = x.contiguous()
            self._held.append(x)
        return x
