"""Edits of logits at random places, and what the contract says they make of logits, entry by entry."""

import torch
from torch import Tensor

from polyserve_kernels.types import LogitEdits


def edits_of(num_rows: int, vocab: int, *, masked: bool = True) -> LogitEdits:
    """Many repetitions and biases in random places, some ids forbidden by bias, half of them by the mask."""
    places = torch.randperm(num_rows * vocab)[: num_rows * 100]
    bias = torch.randn(len(places))
    bias[::7] = -torch.inf
    allowed = torch.randint(-(2**31), 2**31, (num_rows, -(-vocab // 32)), dtype=torch.int64).int() if masked else None
    return LogitEdits(
        rows=places // vocab, ids=places % vocab, repetition=torch.rand(len(places)) + 0.7, bias=bias, allowed=allowed
    )


def apply_edits(logits: Tensor, edits: LogitEdits) -> Tensor:
    edited = logits.clone()
    for row, token, repetition, bias in zip(edits.rows, edits.ids, edits.repetition, edits.bias, strict=True):
        x = edited[row, token]
        edited[row, token] = (x / repetition if x > 0 else x * repetition) + bias
    if edits.allowed is not None:
        ids = torch.arange(logits.shape[1])
        bit = (edits.allowed[:, ids // 32].long() >> (ids % 32)) & 1
        edited[bit == 0] = -torch.inf
    return edited
