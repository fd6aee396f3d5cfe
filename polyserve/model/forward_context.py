"""Where a forward pass finds its keys: the one thing in which serving and training differ, passed as an argument.

PagedContext    keys and values are written into the paged cache and read back from it: serving
PackedContext   sequences packed one after another, each attending to itself alone: training and scoring
Both give a row the same bits. T tokens of S sequences; Hq, Hkv heads of size D.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.types import BlockCache

Rotary = tuple[Tensor, Tensor]  # cos and sin, [T, R / 2] float32 each


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What one layer's attention is, besides its inputs."""

    scale: float
    alibi_slopes: Tensor | None = None  # [Hq] float32
    window: int | None = None
    soft_cap: float | None = None
    interleaved: bool = False  # rotary layout


class ForwardContext(Protocol):
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary | None, spec: AttentionSpec) -> Tensor:
        """Rotate q [T, Hq, D] and k [T, Hkv, D], and attend. Returns [T, Hq, D]."""
        ...


@dataclass(frozen=True, slots=True)
class PagedContext:
    """Rows lie sequence after sequence; the first `num_decodes` sequences have one new token each."""

    caches: list[BlockCache]  # one a layer
    slot_mapping: Tensor  # [T] int64
    block_tables: Tensor  # [S, max_blocks] int32, -1 after the last
    seq_lens: Tensor  # [S] int32, counting the new tokens
    cu_seqlens_q: Tensor  # [S + 1] int32
    num_decodes: int

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary | None, spec: AttentionSpec) -> Tensor:
        cache = self.caches[layer]
        cos, sin = rotary if rotary is not None else (None, None)
        q = ops.rotary_write_kv(q, k, v, cos, sin, cache, self.slot_mapping, interleaved=spec.interleaved)
        n = self.num_decodes
        parts: list[Tensor] = []
        if n:
            parts.append(
                ops.paged_decode(
                    q[:n],
                    cache,
                    self.block_tables[:n],
                    self.seq_lens[:n],
                    scale=spec.scale,
                    alibi_slopes=spec.alibi_slopes,
                    window=spec.window,
                    soft_cap=spec.soft_cap,
                )
            )
        if n < len(self.seq_lens):
            parts.append(
                ops.paged_prefill(
                    q[n:],
                    cache,
                    self.block_tables[n:],
                    self.seq_lens[n:],
                    self.cu_seqlens_q[n:] - n,
                    scale=spec.scale,
                    alibi_slopes=spec.alibi_slopes,
                    window=spec.window,
                    soft_cap=spec.soft_cap,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, slots=True)
class PackedContext:
    cu_seqlens: Tensor  # [S + 1] int32

    def attend(
        self,
        layer: int,  # noqa: ARG002 (every layer's keys come with the call)
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotary: Rotary | None,
        spec: AttentionSpec,
    ) -> Tensor:
        if rotary is not None:
            q, k = ops.rotary(q, k, *rotary, interleaved=spec.interleaved)
        return ops.attention_varlen(
            q,
            k,
            v,
            self.cu_seqlens,
            scale=spec.scale,
            alibi_slopes=spec.alibi_slopes,
            window=spec.window,
            soft_cap=spec.soft_cap,
        )
