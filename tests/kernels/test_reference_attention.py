"""Facts about the reference's attention alone: its fold, and which products it trusts."""

import pytest
import torch

from polyserve_kernels import ops
from polyserve_kernels.dispatch import use_backend
from polyserve_kernels.reference import attention as reference
from support.attention_cases import bounds, heads


def test_bits_are_those_of_small_products_where_large_ones_are_not_trusted(monkeypatch, dtype):
    q, k, v = heads(300, 9, 3, 64, dtype)
    with use_backend("reference"):
        large = ops.attention_varlen(q, k, v, bounds([300]), scale=0.2)
        monkeypatch.setattr(reference, "_same_bits", lambda *shape: False)
        assert torch.equal(ops.attention_varlen(q, k, v, bounds([300]), scale=0.2), large)


@pytest.mark.parametrize("size", [5, 6, 33])
def test_a_row_has_the_same_bits_wherever_it_begins_in_memory(size):
    q, k, v = heads(131, 6, 2, size, torch.float32)
    packed = ops.attention_varlen(q, k, v, bounds([131]), scale=0.2)
    for length in (1, 2, 3, 100, 129, 131):
        assert torch.equal(
            ops.attention_varlen(q[:length], k[:length], v[:length], bounds([length]), scale=0.2), packed[:length]
        )


def test_folding_in_a_tile_without_a_visible_key_changes_nothing():
    state = (torch.randn(3, 4, 1), torch.rand(3, 4, 1), torch.randn(3, 4, 8))
    lowest = torch.full((3, 4, 1), torch.finfo(torch.float32).min)
    neutral = (lowest, torch.zeros(3, 4, 1), torch.zeros(3, 4, 8))
    for merged in (reference.merge_states(state, neutral), reference.merge_states(neutral, state)):
        assert all(torch.equal(a, b) for a, b in zip(merged, state, strict=True))
