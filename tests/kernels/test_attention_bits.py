"""A token's attention has the same bits packed, prefilled in chunks and decoded, in any company and any block size."""

import random
from itertools import pairwise

import pytest
import torch

from polyserve_kernels import ops
from support.attention_cases import OPTIONS, as_given, bounds, by_steps, heads
from support.paged import empty_pages, write

pytestmark = pytest.mark.usefixtures("backend", "poisoned")
options = pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())


@options
def test_a_token_has_the_same_bits_packed_prefilled_in_chunks_and_decoded(option, dtype, backend):
    if backend == "triton":
        lens, cuts = [70, 3, 66], [[64, 70], [2, 3], [1, 66]]
    else:
        lens, cuts = [150, 3, 260, 129], [[100, 128, 150], [1, 2, 3], [1, 129, 260], [127, 128, 129]]
    q, k, v = heads(sum(lens), 6, 2, 16, dtype)
    packed = ops.attention_varlen(q, k, v, bounds(lens), scale=0.2, **as_given(option))
    assert torch.equal(by_steps(q, k, v, lens, cuts, **as_given(option)), packed)


def test_a_token_has_the_same_bits_when_one_after_the_other_is_decoded(dtype, backend):
    lens, last = ([4, 66], 63) if backend == "triton" else ([9, 132], 124)
    q, k, v = heads(sum(lens), 6, 2, 16, dtype)
    decoded = by_steps(q, k, v, lens, [list(range(1, lens[0] + 1)), list(range(last, lens[1] + 1))])
    assert torch.equal(decoded, ops.attention_varlen(q, k, v, bounds(lens), scale=0.2))


@pytest.mark.parametrize("seed", range(6))
def test_random_batches_cut_at_random_places_have_the_bits_of_packed_ones(seed, backend):
    draw = random.Random(seed)
    dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
    kv_heads, group, size = draw.choice([1, 2]), draw.choice([1, 2, 3]), draw.choice([8, 16, 24, 40])
    lens = [draw.randint(1, draw.choice([4, 70, 150])) for _ in range(draw.randint(1, 4))]
    max_cuts = 2 if backend == "triton" else 6
    cuts = [
        sorted({draw.randint(1, n), max(1, n - 1), n} | set(draw.choices(range(1, n + 1), k=max_cuts))) for n in lens
    ]
    option = as_given(draw.choice(list(OPTIONS.values())), kv_heads * group)
    q, k, v = heads(sum(lens), kv_heads * group, kv_heads, size, dtype)
    stepped = by_steps(q, k, v, lens, cuts, block_size=draw.choice([1, 2, 8, 16, 64, 128]), **option)
    assert torch.equal(stepped, ops.attention_varlen(q, k, v, bounds(lens), scale=0.2, **option))


@pytest.mark.parametrize(("query_heads", "kv_heads", "size"), [(9, 3, 64), (4, 1, 24)])
def test_a_sequence_has_the_same_bits_alone_and_at_any_thread_count(query_heads, kv_heads, size, dtype, backend):
    lens, counts = ([67, 5], [1]) if backend == "triton" else ([200, 40, 131, 7], [1, 2, 3])
    q, k, v = heads(sum(lens), query_heads, kv_heads, size, dtype)
    together = ops.attention_varlen(q, k, v, bounds(lens), scale=0.2).split(lens)
    for count in counts:
        torch.set_num_threads(count)
        for (start, end), expected in zip(pairwise(bounds(lens).tolist()), together, strict=True):
            alone = ops.attention_varlen(q[start:end], k[start:end], v[start:end], bounds([end - start]), scale=0.2)
            assert torch.equal(alone, expected)
        decoded = by_steps(q, k, v, lens, [[n - 2, n - 1, n] for n in lens])
        assert torch.equal(decoded, torch.cat(together))


@pytest.mark.parametrize("block_size", [1, 4, 32, 128])
def test_the_block_size_does_not_matter(block_size):
    lens = [131, 20]
    q, k, v = heads(sum(lens), 2, 1, 16, torch.float32)
    pages = empty_pages(lens, block_size=block_size, kv_heads=1, head_size=16, dtype=torch.float32)
    write(pages, k, v, torch.cat(pages.slots))
    seq_lens = torch.tensor(lens).int()
    ours = ops.paged_prefill(q, pages.cache, pages.block_tables, seq_lens, bounds(lens), scale=0.2)
    assert torch.equal(ours, ops.attention_varlen(q, k, v, bounds(lens), scale=0.2))


def test_a_wide_head_has_the_same_bits_decoded(dtype):
    lens = [66, 2]
    for size in (256, 160):
        q, k, v = heads(sum(lens), 2, 1, size, dtype)
        packed = ops.attention_varlen(q, k, v, bounds(lens), scale=0.2)
        assert torch.equal(by_steps(q, k, v, lens, [[n - 1, n] for n in lens]), packed)


def test_strided_heads_give_the_bits_of_contiguous_ones(dtype):
    qkv = torch.randn(70, 10, 16).to(dtype)
    q, k, v = qkv[:, :6], qkv[:, 6:8], qkv[:, 8:]
    packed = ops.attention_varlen(q.contiguous(), k.contiguous(), v.contiguous(), bounds([70]), scale=0.2)
    assert torch.equal(ops.attention_varlen(q, k, v, bounds([70]), scale=0.2), packed)
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))  # of which no dimension is packed
    assert torch.equal(ops.attention_varlen(q, k, v, bounds([70]), scale=0.2), packed)


def test_a_batch_that_is_spread_over_a_wider_table_has_the_same_bits(dtype):
    """Results lie where a graph that was captured for longer sequences expects them."""
    lens = [70, 1, 130]
    q, k, v = heads(sum(lens), 4, 2, 16, dtype)
    pages = empty_pages(lens, block_size=16, kv_heads=2, head_size=16, dtype=dtype)
    write(pages, k, v, torch.cat(pages.slots))
    last, seq_lens = bounds(lens)[1:] - 1, torch.tensor(lens).int()
    wide = torch.full((3, 50), -1, dtype=torch.int32)
    wide[:, : pages.block_tables.shape[1]] = pages.block_tables
    expected = ops.attention_varlen(q, k, v, bounds(lens), scale=0.2)[last]
    for tables in (wide, wide[:, :30]):
        assert torch.equal(ops.paged_decode(q[last], pages.cache, tables, seq_lens, scale=0.2), expected)
