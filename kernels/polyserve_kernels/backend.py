"""What a backend provides: these functions, in a module `backend.py` in its folder.

Their contracts are in `ops.py`, which has checked every argument before it calls them. Options have no defaults here.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from polyserve_kernels.types import BlockCache, HeadTopK, LogitEdits, LossOptions, QuantizedWeight, Scoring

Weight = Any  # a Tensor; or a PackedWeight, which only backends that pack are given


class Backend(Protocol):
    decoder_step: Any  # (DecoderParts, caches) -> the forward pass, or None
    packing: Any  # the functions packed_weight, pack and unpacked, or None

    def matmul(self, x: Tensor, w: Weight, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor: ...

    def quantized_matmul(
        self, x: Tensor, w: QuantizedWeight, bias: Tensor | None, *, out_dtype: torch.dtype
    ) -> Tensor: ...

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float, out_dtype: torch.dtype) -> Tensor: ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, out_dtype: torch.dtype) -> Tensor: ...

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, out_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]: ...

    def add_layer_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float, out_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]: ...

    def bias_gelu(self, x: Tensor, bias: Tensor | None) -> Tensor: ...

    def gated_silu(self, x: Tensor) -> Tensor: ...

    def gated_gelu(self, x: Tensor) -> Tensor: ...

    def rotary(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> tuple[Tensor, Tensor]: ...

    def rotary_write_kv(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        cache: BlockCache,
        slot_mapping: Tensor,
        *,
        interleaved: bool,
    ) -> Tensor: ...

    def copy_blocks(self, cache: BlockCache, pairs: Tensor) -> None: ...

    def attention_varlen(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scoring: Scoring
    ) -> tuple[Tensor, Tensor]: ...

    def paged_prefill(
        self,
        q: Tensor,
        cache: BlockCache,
        block_tables: Tensor,
        seq_lens: Tensor,
        cu_seqlens_q: Tensor,
        scoring: Scoring,
    ) -> Tensor: ...

    def paged_decode(
        self, q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor, scoring: Scoring
    ) -> Tensor: ...

    def num_vocab_tiles(self, vocab_size: int, channels: int) -> int: ...

    def head_topk(
        self,
        hidden: Tensor,
        weight: Weight,
        *,
        k: int,
        temperature: Tensor | None,
        edits: LogitEdits | None,
        uniforms: Tensor | None,
        num_top: int,
        soft_cap: float | None,
    ) -> HeadTopK: ...

    def head_logits(
        self,
        hidden: Tensor,
        weight: Weight,
        *,
        edits: LogitEdits | None,
        temperature: Tensor | None,
        soft_cap: float | None,
    ) -> tuple[Tensor, Tensor]: ...

    def token_logprobs(
        self, hidden: Tensor, weight: Weight, targets: Tensor, *, num_top: int, soft_cap: float | None
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def linear_cross_entropy(self, hidden: Tensor, weight: Tensor, targets: Tensor, options: LossOptions) -> Tensor: ...

    def random_uniform(
        self, seeds: Tensor, choices: Tensor, positions: Tensor, *, purpose: int, count: int
    ) -> Tensor: ...
