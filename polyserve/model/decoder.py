"""The one decoder. What differs between families is in ModelConfig; what differs between devices is in the kernels.

    residual = embedding                           fp32 from beginning to end
    for each layer
        residual += attention(norm(residual))      sandwich: each update goes through one more norm before the sum
        residual += mlp(norm(residual))
    hidden = norm(residual)                        in the weights' dtype: what the head is multiplied with
A sum into the residual stream happens inside the norm that reads it next: the stream crosses memory once a half block.
T tokens   C hidden size   V vocabulary
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from polyserve.model.attention import Attention
from polyserve.model.config import ModelConfig
from polyserve.model.embedding import Embedding
from polyserve.model.forward_context import ForwardContext, Rotary
from polyserve.model.linear import unfilled
from polyserve.model.mlp import MLP
from polyserve.model.norms import Norm
from polyserve.model.positions import RotaryTable
from polyserve_kernels.types import PackedWeight


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = Norm(config, config.hidden_size, out_dtype=dtype)
        self.attention = Attention(config, layer, dtype=dtype)
        self.mlp_norm = Norm(config, config.hidden_size, out_dtype=dtype)
        self.mlp = MLP(config, dtype=dtype)
        sandwich = config.norm_placement == "sandwich"
        self.attention_post_norm = Norm(config, config.hidden_size, out_dtype=torch.float32) if sandwich else None
        self.mlp_post_norm = Norm(config, config.hidden_size, out_dtype=torch.float32) if sandwich else None

    def forward(
        self, update: Tensor | None, residual: Tensor, rotary: Rotary | None, context: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        """update: what the layer before still has to add to the residual stream. Returns the next layer's pair."""
        if update is None:
            x = self.attention_norm(residual)
        else:
            x, residual = self.attention_norm.add(update, residual)
        x = self.attention(x, rotary, context)
        if self.attention_post_norm is not None:
            x = self.attention_post_norm(x)
        x, residual = self.mlp_norm.add(x, residual)
        x = self.mlp(x)
        return (x if self.mlp_post_norm is None else self.mlp_post_norm(x)), residual


class Decoder(nn.Module):
    """Parameters have no memory until `polyserve.model.weights.load` fills them."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, max_model_len: int | None = None) -> None:
        """max_model_len: the longest sequence it will be asked for, at most config.max_len, which is the default."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.max_model_len = config.max_len if max_model_len is None else max_model_len
        if not 0 < self.max_model_len <= config.max_len:
            raise ValueError(f"max_model_len must be from 1 to the model's {config.max_len}, got {max_model_len}")
        self.embedding = Embedding(config, dtype=dtype)
        self.layers = nn.ModuleList(Layer(config, layer, dtype=dtype) for layer in range(config.num_layers))
        self.norm = Norm(config, config.hidden_size, out_dtype=dtype)
        self.head: Tensor | PackedWeight | None = (
            None if config.tied_head else unfilled(config.vocab_size, config.hidden_size, dtype=dtype)
        )
        kinds = list(zip(config.rope_bases, config.rope_scalings, strict=True))
        self._table_of_layer = [list(dict.fromkeys(kinds)).index(kind) for kind in kinds]
        self.rotary_tables = nn.ModuleList(
            RotaryTable(base, scaling, size=config.rotary_size, scale=config.rotary_scale, max_len=self.max_model_len)
            for base, scaling in dict.fromkeys(kinds)
        )

    @property
    def head_weight(self) -> Tensor | PackedWeight:
        """[V, C]"""
        return self.embedding.weight if self.head is None else self.head

    def forward(self, token_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """token_ids, positions: [T] int64. Returns the hidden states [T, C] after the final norm."""
        residual = self.embedding(token_ids, positions)
        update: Tensor | None = None
        for layer, rotary in zip(self.layers, self._rotaries(positions), strict=True):
            update, residual = layer(update, residual, rotary, context)
        assert update is not None  # a decoder has layers
        hidden, _ = self.norm.add(update, residual)
        return hidden

    @property
    def tables_of_layers(self) -> list[RotaryTable | None]:
        """Each layer's table of rotary angles; layers with the same base and scaling share one."""
        if not self.config.rotary_size:
            return [None] * self.config.num_layers
        return [cast(RotaryTable, self.rotary_tables[table]) for table in self._table_of_layer]

    def _rotaries(self, positions: Tensor) -> Iterator[Rotary | None]:
        """cos and sin for each layer."""
        tables = self.tables_of_layers
        rows = {table: None if table is None else table(positions) for table in dict.fromkeys(tables)}
        return (rows[table] for table in tables)
