"""Memory of operations 6 to 8 is O(rows x channels + tile x vocabulary): all logits of all rows are never there.

Every allocation is counted. On a CPU the operations run; the launchers of Triton's kernels are given tensors on `meta`
of the sizes of PolyLM, and allocate as they would on a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.dispatch import triton_to_compile, use_backend
from polyserve_kernels.triton import sampling
from polyserve_kernels.triton.launch import observed
from polyserve_kernels.types import LogitEdits
from support.peak_memory import PeakMemory

LOGIT_BYTES = 4
SIZES = {  # rows, vocabulary, channels: more than one tile or pass of each
    "reference": (32, 20_000, 16),
    "cpu": (32, 20_000, 16),
    "triton": (2048, 128_000, 2048),
}


@contextmanager
def at(place: str) -> Iterator[torch.dtype]:
    """Tensors are made, and operations answered, as in this place; the dtype of its hidden states and weights."""
    if place == "triton":
        with triton_to_compile(), observed(90, lambda *_: None), torch.device("meta"):
            yield torch.bfloat16
    else:
        with use_backend(place):
            yield torch.float32


def edits_and_draws(rows: int, vocab: int, channels: int) -> dict[str, object]:
    entries, numbers = torch.arange(rows), torch.ones(rows)
    allowed = torch.full((rows, -(-vocab // 32)), -1, dtype=torch.int32)
    num_tiles = ops.num_vocab_tiles(vocab, channels, device=entries.device)
    return {
        "edits": LogitEdits(rows=entries, ids=entries, repetition=numbers, bias=numbers, allowed=allowed),
        "temperature": numbers,
        "uniforms": torch.full((rows, num_tiles, 2), 0.5),
        "num_top": 20,
    }


def best(hidden: Tensor, weight: Tensor) -> int:
    with PeakMemory() as peak:
        ops.head_topk(hidden, weight, k=128)
    return peak.bytes


def very_many_of_the_best(hidden: Tensor, weight: Tensor) -> int:
    with PeakMemory() as peak:
        ops.head_topk(hidden, weight, k=5000)
    return peak.bytes


def best_of_edited_and_draws(hidden: Tensor, weight: Tensor) -> int:
    options = edits_and_draws(len(hidden), *weight.shape)
    with PeakMemory() as peak:
        ops.head_topk(hidden, weight, k=128, **options)
    return peak.bytes


def scores(hidden: Tensor, weight: Tensor) -> int:
    targets = torch.zeros(len(hidden), dtype=torch.int64)
    with PeakMemory() as peak:
        ops.token_logprobs(hidden, weight, targets, num_top=20)
    return peak.bytes


def losses(hidden: Tensor, weight: Tensor) -> int:
    targets = torch.zeros(len(hidden), dtype=torch.int64)
    with PeakMemory() as peak:
        ops.linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), targets, z_loss=0.1, soft_cap=9.0)
    return peak.bytes


def gradients(hidden: Tensor, weight: Tensor) -> int:
    """What the backward pass adds, the gradients themselves among it."""
    targets = torch.zeros(len(hidden), dtype=torch.int64)
    loss = ops.linear_cross_entropy(
        hidden.requires_grad_(), weight.requires_grad_(), targets, z_loss=0.1, soft_cap=9.0
    ).sum()
    with PeakMemory() as peak:
        loss.backward()
    return peak.bytes


OPERATIONS = [best, best_of_edited_and_draws, scores, losses, gradients]


def peak_bytes(operation: Callable[[Tensor, Tensor], int], place: str, rows: int, vocab: int, channels: int) -> int:
    with at(place) as dtype:
        make = torch.empty if place == "triton" else torch.randn
        for _ in range(2):  # at first use the reference tries how to multiply
            found = operation(make(rows, channels, dtype=dtype), make(vocab, channels, dtype=dtype))
        return found


def bytes_by_rows_and_vocabulary(operation: Callable[[Tensor, Tensor], int], place: str) -> float:
    """Bytes for each pair of a row and an id: what twice of both take beyond what twice of either adds."""
    rows, vocab, channels = SIZES[place]
    one, more_ids, more_rows, both = (
        peak_bytes(operation, place, m * rows, n * vocab, channels) for m in (1, 2) for n in (1, 2)
    )
    assert one > 0
    return (both - more_rows - more_ids + one) / (rows * vocab)


@pytest.mark.parametrize("place", SIZES)
@pytest.mark.parametrize("operation", [*OPERATIONS, very_many_of_the_best])
def test_no_bytes_are_for_each_pair_of_a_row_and_an_id(operation, place):
    assert abs(bytes_by_rows_and_vocabulary(operation, place)) < LOGIT_BYTES / 1000


def test_a_pass_that_keeps_something_of_every_row_would_be_noticed(monkeypatch):
    monkeypatch.setattr(sampling, "MAX_ROWS", 10**9)
    assert bytes_by_rows_and_vocabulary(best, "triton") > LOGIT_BYTES / 10


@pytest.mark.parametrize("operation", OPERATIONS)
def test_256_000_ids_and_4096_rows_take_a_tenth_of_their_logits_besides_gradients(operation):
    rows, vocab, channels = 4096, 256_000, 2048
    gradients_bytes = 2 * vocab * channels + 4 * rows * channels if operation is gradients else 0
    found = peak_bytes(operation, "triton", rows, vocab, channels)
    assert 0 < found - gradients_bytes < rows * vocab * LOGIT_BYTES / 10


def test_a_step_of_attention_gathers_a_bounded_part_of_the_keys():
    q, k, v = torch.randn(1500, 8, 32), torch.randn(1500, 8, 32), torch.randn(1500, 8, 32)
    bounds = torch.tensor([0, 1500], dtype=torch.int32)
    with use_backend("reference"), PeakMemory() as peak:
        ops.attention_varlen(q, k, v, bounds, scale=1.0)
    assert peak.bytes < 4 * 8 * 1500 * 1500 / 4  # all scores
