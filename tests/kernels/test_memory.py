"""The head's operations never hold a row of logits for every row: memory is O(rows x tile), whatever the vocabulary."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.types import LogitEdits
from support.largest_tensor import LargestTensor

ROWS, CHANNELS, VOCAB = 32, 16, 100_000
TILE = 8192  # ids of a tile


def best_and_draw(hidden: Tensor, weight: Tensor) -> None:
    uniforms = torch.full((ROWS, ops.num_vocab_tiles(VOCAB, CHANNELS), 2), 0.5)
    ops.head_topk(hidden, weight, k=50, uniforms=uniforms, num_top=20, temperature=torch.ones(ROWS))


def best_of_edited(hidden: Tensor, weight: Tensor) -> None:
    entries = torch.arange(ROWS)
    edits = LogitEdits(
        rows=entries,
        ids=entries * 1000,
        repetition=torch.ones(ROWS),
        bias=torch.ones(ROWS),
        allowed=torch.full((ROWS, -(-VOCAB // 32)), -1, dtype=torch.int32),
    )
    ops.head_topk(hidden, weight, k=50, edits=edits)


def scores(hidden: Tensor, weight: Tensor) -> None:
    ops.token_logprobs(hidden, weight, torch.arange(ROWS), num_top=20)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("operation", [best_and_draw, best_of_edited, scores])
def test_no_tensor_is_larger_than_the_rows_times_one_tile(operation: Callable[[Tensor, Tensor], None]):
    hidden, weight = torch.randn(ROWS, CHANNELS), torch.randn(VOCAB, CHANNELS)
    with LargestTensor() as largest:
        operation(hidden, weight)
    assert 0 < largest.elements <= ROWS * TILE < ROWS * VOCAB / 10


def test_a_step_of_attention_gathers_a_bounded_part_of_the_keys():
    q, k, v = torch.randn(1500, 8, 32), torch.randn(1500, 8, 32), torch.randn(1500, 8, 32)
    bounds = torch.tensor([0, 1500], dtype=torch.int32)
    ops.attention_varlen(q, k, v, bounds, scale=1.0)
    with LargestTensor() as largest:
        ops.attention_varlen(q, k, v, bounds, scale=1.0)
    assert largest.elements <= 2**20  # all scores would be 8 * 1500 * 1500
