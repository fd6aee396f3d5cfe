"""Attention of packed sequences and of the paged cache: right, and the same bits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.reference import attention as reference
from support.paged import empty_pages, write
from support.plain_attention import plain_attention
from support.tolerance import assert_as_good_as_torch

LENS = [5, 0, 127, 128, 129, 300, 1]
OPTIONS = {
    "plain": {},
    "window of one": {"window": 1},
    "window": {"window": 100},
    "window of a tile": {"window": 128},
    "soft cap": {"soft_cap": 2.0},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.3, 0.01])},
    "all": {"window": 70, "soft_cap": 3.0, "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.3, 0.01])},
}
options = pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())


def bounds(lens: list[int]) -> Tensor:
    return torch.tensor([0, *lens]).cumsum(0).int()


def heads(num_tokens: int, query_heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    shapes = ((num_tokens, query_heads, size), (num_tokens, kv_heads, size), (num_tokens, kv_heads, size))
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def by_steps(q: Tensor, k: Tensor, v: Tensor, lens: list[int], cuts: list[list[int]], **option: Any) -> Tensor:
    """The same through the cache: sequence s's tokens come in chunks that end at cuts[s], one chunk of each a step."""
    pages = empty_pages(lens, block_size=16, kv_heads=k.shape[1], head_size=k.shape[2], dtype=k.dtype)
    out, first = torch.full_like(q, torch.nan), bounds(lens).tolist()
    done = [0] * len(lens)
    for step in range(max(map(len, cuts))):
        chunks = [(s, done[s], cuts[s][step]) for s in range(len(lens)) if step < len(cuts[s])]
        rows = torch.cat([torch.arange(first[s] + start, first[s] + end) for s, start, end in chunks])
        write(pages, k[rows], v[rows], torch.cat([pages.slots[s][start:end] for s, start, end in chunks]))
        tables = pages.block_tables[[s for s, _, _ in chunks]]
        seq_lens = torch.tensor([end for _, _, end in chunks]).int()
        caches = (pages.cache, tables, seq_lens)
        if all(end - start == 1 for _, start, end in chunks):
            out[rows] = ops.paged_decode(q[rows], *caches, scale=0.2, **option)
        else:
            cu_seqlens_q = bounds([end - start for _, start, end in chunks])
            out[rows] = ops.paged_prefill(q[rows], *caches, cu_seqlens_q, scale=0.2, **option)
        for s, _, end in chunks:
            done[s] = end
    return out


@options
def test_packed_sequences_are_as_exact_as_torch(option, dtype):
    q, k, v = heads(sum(LENS), 6, 2, 16, dtype)
    exact = plain_attention(q.double(), k.double(), v.double(), LENS, scale=0.2, **option)
    eager = plain_attention(q, k, v, LENS, scale=0.2, **option)
    assert_as_good_as_torch(ops.attention_varlen(q, k, v, bounds(LENS), scale=0.2, **option), eager, exact)


@pytest.mark.parametrize(
    ("query_heads", "kv_heads", "size"), [(1, 1, 64), (4, 4, 80), (20, 1, 32), (8, 1, 256), (9, 3, 5)]
)
def test_any_grouping_and_any_head_size_is_as_exact_as_torch(query_heads, kv_heads, size, dtype):
    lens = [3, 150, 40]
    q, k, v = heads(sum(lens), query_heads, kv_heads, size, dtype)
    exact = plain_attention(q.double(), k.double(), v.double(), lens, scale=size**-0.5)
    eager = plain_attention(q, k, v, lens, scale=size**-0.5)
    assert_as_good_as_torch(ops.attention_varlen(q, k, v, bounds(lens), scale=size**-0.5), eager, exact)


@options
def test_a_token_has_the_same_bits_packed_prefilled_in_chunks_and_decoded(option, dtype):
    lens = [150, 3, 260, 129]
    q, k, v = heads(sum(lens), 6, 2, 16, dtype)
    packed = ops.attention_varlen(q, k, v, bounds(lens), scale=0.2, **option)
    whole = by_steps(q, k, v, lens, [[n] for n in lens], **option)
    chunked = by_steps(q, k, v, lens, [[100, 128, 150], [1, 2, 3], [1, 129, 260], [127, 128, 129]], **option)
    assert torch.equal(whole, packed)
    assert torch.equal(chunked, packed)


def test_a_token_has_the_same_bits_when_one_after_the_other_is_decoded(dtype):
    lens = [9, 132]
    q, k, v = heads(sum(lens), 6, 2, 16, dtype)
    decoded = by_steps(q, k, v, lens, [list(range(1, 10)), list(range(124, 133))])
    assert torch.equal(decoded, ops.attention_varlen(q, k, v, bounds(lens), scale=0.2))


@pytest.mark.parametrize(("query_heads", "kv_heads", "size"), [(9, 3, 64), (4, 1, 24)])
def test_a_sequence_has_the_same_bits_alone_and_at_any_thread_count(query_heads, kv_heads, size, dtype):
    lens = [200, 40, 131, 7]
    q, k, v = heads(sum(lens), query_heads, kv_heads, size, dtype)
    together = ops.attention_varlen(q, k, v, bounds(lens), scale=0.2).split(lens)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for rows, expected in zip(torch.arange(sum(lens)).split(lens), together, strict=True):
            alone = ops.attention_varlen(q[rows], k[rows], v[rows], bounds([len(rows)]), scale=0.2)
            assert torch.equal(alone, expected)
        decoded = by_steps(q, k, v, lens, [[n - 2, n - 1, n] for n in lens])
        assert torch.equal(decoded, torch.cat(together))


def test_bits_are_those_of_small_products_where_large_ones_are_not_trusted(monkeypatch, dtype):
    q, k, v = heads(300, 9, 3, 64, dtype)
    large = ops.attention_varlen(q, k, v, bounds([300]), scale=0.2)
    monkeypatch.setattr(reference, "_same_bits", lambda *shape: False)
    assert torch.equal(ops.attention_varlen(q, k, v, bounds([300]), scale=0.2), large)


@pytest.mark.parametrize("block_size", [1, 4, 32, 128])
def test_the_block_size_does_not_matter(block_size):
    lens = [150, 20]
    q, k, v = heads(sum(lens), 4, 2, 16, torch.float32)
    pages = empty_pages(lens, block_size=block_size, kv_heads=2, head_size=16, dtype=torch.float32)
    write(pages, k, v, torch.cat(pages.slots))
    seq_lens = torch.tensor(lens).int()
    ours = ops.paged_prefill(q, pages.cache, pages.block_tables, seq_lens, bounds(lens), scale=0.2)
    assert torch.equal(ours, ops.attention_varlen(q, k, v, bounds(lens), scale=0.2))


def test_a_cache_in_a_smaller_dtype_is_read_as_it_was_rounded():
    lens = [140]
    q, k, v = heads(140, 4, 2, 16, torch.float32)
    pages = empty_pages(lens, block_size=16, kv_heads=2, head_size=16, dtype=torch.bfloat16)
    write(pages, k, v, pages.slots[0])
    seq_lens = torch.tensor(lens).int()
    ours = ops.paged_decode(q[-1:], pages.cache, pages.block_tables, seq_lens, scale=0.2)
    rounded = ops.attention_varlen(q, k.bfloat16().float(), v.bfloat16().float(), bounds(lens), scale=0.2)
    assert torch.equal(ours, rounded[-1:])


def test_sequences_without_queries_and_without_keys_give_nothing_and_zeros():
    q, k, v = heads(20, 4, 2, 16, torch.float32)
    pages = empty_pages([20, 20, 0], block_size=16, kv_heads=2, head_size=16, dtype=torch.float32)
    write(pages, k, v, pages.slots[0])
    write(pages, k, v, pages.slots[1])
    caches = (pages.cache, pages.block_tables, torch.tensor([20, 20, 0]).int())
    expected = ops.attention_varlen(q, k, v, bounds([20]), scale=0.2)
    prefilled = ops.paged_prefill(q[5:], *caches, torch.tensor([0, 0, 15, 15]).int(), scale=0.2)
    assert torch.equal(prefilled, expected[5:])
    decoded = ops.paged_decode(q[[19, 19, 3]], *caches, scale=0.2)
    assert torch.equal(decoded[:2], expected[[19, 19]])
    assert (decoded[2] == 0).all()


def test_no_tokens_at_all_give_nothing():
    q, k, v = heads(0, 4, 2, 16, torch.float32)
    assert ops.attention_varlen(q, k, v, torch.zeros(1, dtype=torch.int32), scale=1.0).shape == (0, 4, 16)
    assert ops.attention_varlen(q, k, v, torch.zeros(3, dtype=torch.int32), scale=1.0).shape == (0, 4, 16)


def test_strided_heads_give_the_bits_of_contiguous_ones(dtype):
    qkv = torch.randn(150, 10, 16).to(dtype)
    q, k, v = qkv[:, :6], qkv[:, 6:8], qkv[:, 8:]
    strided = ops.attention_varlen(q, k, v, bounds([150]), scale=0.2)
    packed = ops.attention_varlen(q.contiguous(), k.contiguous(), v.contiguous(), bounds([150]), scale=0.2)
    assert torch.equal(strided, packed)


def test_scores_of_hundreds_do_not_overflow():
    q, k, v = heads(200, 2, 1, 16, torch.float32)
    exact = plain_attention(q.double(), k.double(), v.double(), [200], scale=200.0)
    eager = plain_attention(q, k, v, [200], scale=200.0)
    assert_as_good_as_torch(ops.attention_varlen(q, k, v, bounds([200]), scale=200.0), eager, exact)


def test_folding_in_a_tile_without_a_visible_key_changes_nothing():
    state = (torch.randn(3, 4, 1), torch.rand(3, 4, 1), torch.randn(3, 4, 8))
    lowest = torch.full((3, 4, 1), torch.finfo(torch.float32).min)
    neutral = (lowest, torch.zeros(3, 4, 1), torch.zeros(3, 4, 8))
    for merged in (reference.merge_states(state, neutral), reference.merge_states(neutral, state)):
        assert all(torch.equal(a, b) for a, b in zip(merged, state, strict=True))
