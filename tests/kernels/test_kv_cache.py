"""Writing keys and values into the paged cache, and copying blocks."""

import pytest
import torch

from polyserve_kernels import ops
from polyserve_kernels.types import BlockCache


def empty(dtype: torch.dtype = torch.float32) -> BlockCache:
    return BlockCache(*torch.zeros(2, 6, 4, 2, 8, dtype=dtype))


def test_keys_are_rotated_and_values_are_not():
    q, k, v = torch.randn(3, 4, 8), torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    cos, sin = torch.randn(3, 4), torch.randn(3, 4)
    cache = empty()
    slots = torch.tensor([7, 0, 22])
    turned = ops.rotary_write_kv(q, k, v, cos, sin, cache, slots)
    q_expected, k_expected = ops.rotary(q, k, cos, sin)
    assert torch.equal(turned, q_expected)
    assert torch.equal(cache.k.flatten(0, 1)[slots], k_expected)
    assert torch.equal(cache.v.flatten(0, 1)[slots], v)


def test_nothing_else_is_written():
    cache = empty()
    k = torch.ones(2, 2, 8)
    ops.rotary_write_kv(k, k, k, None, None, cache, torch.tensor([5, 9]))
    written = torch.zeros(24, dtype=torch.bool)
    written[[5, 9]] = True
    for x in (cache.k, cache.v):
        assert (x.flatten(0, 1)[~written] == 0).all()
        assert (x.flatten(0, 1)[written] == 1).all()


def test_a_token_without_a_slot_is_skipped():
    cache = empty()
    k = torch.arange(1.0, 4.0)[:, None, None].expand(3, 2, 8)
    ops.rotary_write_kv(k, k, k, None, None, cache, torch.tensor([3, -1, 4]))
    assert cache.k.flatten(0, 1)[:, 0, 0].tolist() == [0, 0, 0, 1, 3] + [0] * 19


def test_without_angles_queries_come_back_as_they_are():
    q = torch.randn(3, 4, 8)
    cache = empty()
    k = torch.randn(3, 2, 8)
    assert torch.equal(ops.rotary_write_kv(q, k, k, None, None, cache, torch.arange(3)), q)


def test_interleaved_pairs_turn_as_in_rotary():
    q, k = torch.randn(3, 4, 8), torch.randn(3, 2, 8)
    cos, sin = torch.randn(3, 3), torch.randn(3, 3)
    cache = empty()
    ours = ops.rotary_write_kv(q, k, k, cos, sin, cache, torch.arange(3), interleaved=True)
    q_expected, k_expected = ops.rotary(q, k, cos, sin, interleaved=True)
    assert torch.equal(ours, q_expected)
    assert torch.equal(cache.k.flatten(0, 1)[:3], k_expected)


def test_keys_are_rounded_to_the_caches_dtype():
    cache = empty(torch.bfloat16)
    k = torch.randn(3, 2, 8)
    ops.rotary_write_kv(k, k, k, None, None, cache, torch.arange(3))
    assert torch.equal(cache.k.flatten(0, 1)[:3], k.bfloat16())


def test_strided_keys_and_values_are_fine(dtype):
    qkv = torch.randn(5, 8, 8).to(dtype)
    cache = empty(dtype)
    ops.rotary_write_kv(qkv[:, :4], qkv[:, 4:6], qkv[:, 6:], None, None, cache, torch.arange(5))
    assert torch.equal(cache.k.flatten(0, 1)[:5], qkv[:, 4:6])
    assert torch.equal(cache.v.flatten(0, 1)[:5], qkv[:, 6:])


def test_blocks_are_copied_whole():
    cache = BlockCache(*torch.randn(2, 6, 4, 2, 8))
    before = cache.k.clone(), cache.v.clone()
    ops.copy_blocks(cache, torch.tensor([[0, 3], [0, 5], [2, 1]]))
    for x, old in zip((cache.k, cache.v), before, strict=True):
        assert torch.equal(x, old[[0, 2, 2, 0, 4, 0]])


@pytest.mark.parametrize("pairs", [torch.empty(0, 2, dtype=torch.int64)])
def test_copying_nothing_changes_nothing(pairs):
    cache = BlockCache(*torch.randn(2, 6, 4, 2, 8))
    before = cache.k.clone()
    ops.copy_blocks(cache, pairs)
    assert torch.equal(cache.k, before)
