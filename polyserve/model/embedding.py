"""Tokens into the residual stream: words times a scale, plus learned positions, through a norm; all but words optional.

C hidden size   The result is [T, C] in fp32, as the residual stream is from its beginning: PolyLM was trained so.
Gradient        of a row, the sum over its tokens, which are thousands for a common word and for the first positions: in
                fp32, in the tokens' order, rounded once. On a CPU, where the head is the same matrix and has a gradient
                for every row, it is sparse: zeros of the whole vocabulary would be written and added. A GPU would have
                to wait to know how many rows there are
"""

from typing import Any

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
        self._is_head = config.tied_head
        # Gemma multiplies in the dtype of its weights: sqrt(3072) is 55.5 in bf16, and so it was trained.
        self.scale = float(torch.tensor(config.embedding_scale, dtype=dtype))
        self.norm = Norm(config, config.hidden_size, out_dtype=torch.float32) if config.embedding_norm else None

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """token_ids, positions: [T] int64."""
        residual = self.words(token_ids) * self.scale
        if self.positions is not None:
            residual = residual + _rows(self.positions, positions) * self.positions_scale
        return residual if self.norm is None else self.norm(residual)

    def words(self, token_ids: Tensor) -> Tensor:
        """The rows of tokens, [T, C] in fp32."""
        return _rows(self.weight, token_ids, sparse=self._is_head and token_ids.device.type == "cpu")


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, sparse: bool) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.grad_dtype, ctx.sparse = table.shape, table.grad_dtype or table.dtype, sparse
        return table[ids].float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        if not ctx.sparse:
            return _sums(grad, ids, ctx.shape[0]).to(ctx.grad_dtype), None, None
        found, places = torch.unique(ids, return_inverse=True)
        sums = _sums(grad, places, len(found)).to(ctx.grad_dtype)
        grad = torch.sparse_coo_tensor(found[None], sums, ctx.shape, is_coalesced=True, check_invariants=False)
        return grad, None, None


def _sums(grad: Tensor, ids: Tensor, num_rows: int) -> Tensor:
    """[num_rows, C]: of each row, what its tokens bring."""
    sums: Tensor = torch.ops.aten.embedding_dense_backward(grad, ids, num_rows, -1, False)
    return sums


def _rows(table: Tensor | PackedWeight, ids: Tensor, *, sparse: bool = False) -> Tensor:
    """table[ids] in fp32.  table: [N, C].  ids: [T] int64.  sparse: its gradient, see above."""
    if isinstance(table, Tensor) and torch.is_grad_enabled() and table.requires_grad:
        rows: Tensor = _Rows.apply(table, ids, sparse)  # type: ignore[no-untyped-call]
        return rows
    return ops.embedding(ids, table)
