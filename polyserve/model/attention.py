"""The attention half of a block: one product for queries, keys and values, the context's attention, one product out.

C hidden size   Hq, Hkv heads of size D   rows of `qkv.weight`: q [Hq D] | k [Hkv D] | v [Hkv D]
Where keys come from, and whether they are kept, is the context's business (forward_context.py).
"""

import torch
from torch import Tensor, nn

from polyserve.model.config import ModelConfig
from polyserve.model.forward_context import AttentionSpec, ForwardContext, Rotary
from polyserve.model.linear import Linear
from polyserve.model.norms import Norm
from polyserve.model.positions import alibi_slopes


class Attention(nn.Module):
    alibi_slopes: Tensor | None

    def __init__(self, config: ModelConfig, layer: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        head_size = config.head_size
        self.sizes = [config.num_heads * head_size, config.num_kv_heads * head_size, config.num_kv_heads * head_size]
        self.qkv = Linear(config.hidden_size, sum(self.sizes), bias=config.qkv_bias, dtype=dtype)
        self.out = Linear(self.sizes[0], config.hidden_size, bias=config.attention_out_bias, dtype=dtype)
        self.q_norm = Norm(config, head_size, out_dtype=dtype) if config.qk_norm else None
        self.k_norm = Norm(config, head_size, out_dtype=dtype) if config.qk_norm else None
        slopes = alibi_slopes(config.num_heads, scale=config.alibi_scale) if config.alibi_scale else None
        self.register_buffer("alibi_slopes", slopes, persistent=False)

    def forward(self, x: Tensor, rotary: Rotary | None, context: ForwardContext) -> Tensor:
        """[T, C] -> [T, C]"""
        q, k, v = (part.unflatten(1, (-1, self.config.head_size)) for part in self.qkv(x).split(self.sizes, dim=1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)  # each head alone
        update: Tensor = self.out(context.attend(self.layer, q, k, v, rotary, self.spec).flatten(1))
        return update

    @property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(
            scale=self.config.score_scale,
            alibi_slopes=self.alibi_slopes,
            window=self.config.window(self.layer),
            soft_cap=self.config.attention_soft_cap,
            interleaved=self.config.rotary_interleaved,
        )
