"""The feed-forward half of a block.   C hidden size   F mlp_size

gelu      y = GELU(x Wu^T + bu) Wd^T + bd            `up` has the F rows of Wu
gated_*   y = (act(x Wg^T) * (x Wu^T)) Wd^T          `up` has the 2F rows of Wg, then Wu: one product, not two
Source    https://arxiv.org/abs/2002.05202
"""

import torch
from torch import Tensor, nn

from polyserve.model.config import ModelConfig
from polyserve.model.linear import Linear
from polyserve_kernels import ops


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind = config.mlp
        num_up = 2 * config.mlp_size if config.gated else config.mlp_size
        self.up = Linear(config.hidden_size, num_up, bias=config.mlp_bias, dtype=dtype)
        self.down = Linear(config.mlp_size, config.hidden_size, bias=config.mlp_bias, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[T, C] -> [T, C]"""
        update: Tensor = self.down(self._activate(x))
        return update

    def _activate(self, x: Tensor) -> Tensor:
        if self.kind == "gelu":
            return ops.bias_gelu(self.up.without_bias(x), self.up.bias)
        gate_up = self.up(x)  # [T, 2F]
        return ops.gated_silu(gate_up) if self.kind == "gated_silu" else ops.gated_gelu(gate_up)
