"""Tokens into the residual stream: words times a scale, plus learned positions, through a norm; all but words optional.

C hidden size   The result is [T, C] in fp32, as the residual stream is from its beginning: PolyLM was trained so.
"""

import torch
from torch import Tensor, nn

from polyserve.model.config import ModelConfig
from polyserve.model.linear import unfilled
from polyserve.model.norms import Norm
from polyserve_kernels import ops
from polyserve_kernels.types import PackedWeight


class Embedding(nn.Module):
    def __init__(self, config: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: Tensor | PackedWeight = unfilled(config.vocab_size, config.hidden_size, dtype=dtype)
        self.positions = unfilled(config.max_len, config.hidden_size, dtype=dtype) if config.learned_positions else None
        self.positions_scale = config.learned_positions_scale
        # Gemma multiplies in the dtype of its weights: sqrt(3072) is 55.5 in bf16, and so it was trained.
        self.scale = float(torch.tensor(config.embedding_scale, dtype=dtype))
        self.norm = Norm(config, config.hidden_size, out_dtype=torch.float32) if config.embedding_norm else None

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """token_ids, positions: [T] int64."""
        residual = ops.embedding(token_ids, self.weight) * self.scale
        if self.positions is not None:
            residual = residual + self.positions[positions].float() * self.positions_scale
        return residual if self.norm is None else self.norm(residual)
