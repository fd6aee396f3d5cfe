"""Attention of packed sequences and of the paged cache is as exact as torch. Its bits: `test_attention_bits.py`."""

import pytest
import torch
from torch import Tensor

from polyserve_kernels import ops
from support.attention_cases import OPTIONS, as_given, bounds, heads
from support.paged import Paged, empty_pages, write
from support.plain_attention import plain_attention, plain_lse
from support.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("backend", "poisoned")
options = pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())
SCALED = [torch.int8, torch.float8_e4m3fn]


@pytest.fixture
def lens(backend: str) -> list[int]:
    """On both sides of where key tiles end."""
    return [5, 0, 63, 65, 129, 1] if backend == "triton" else [5, 0, 127, 128, 129, 300, 1]


@options
def test_packed_sequences_are_as_exact_as_torch(option, dtype, lens):
    q, k, v = heads(sum(lens), 6, 2, 16, dtype)
    option = as_given(option)
    exact = plain_attention(q.double(), k.double(), v.double(), lens, scale=0.2, **option)
    eager = plain_attention(q, k, v, lens, scale=0.2, **option)
    assert_as_good_as_torch(ops.attention_varlen(q, k, v, bounds(lens), scale=0.2, **option), eager, exact)


def test_half_precision_is_as_exact_as_torch(lens):
    q, k, v = heads(sum(lens), 6, 2, 16, torch.float16)
    exact = plain_attention(q.double(), k.double(), v.double(), lens, scale=0.2)
    eager = plain_attention(q, k, v, lens, scale=0.2)
    assert_as_good_as_torch(ops.attention_varlen(q, k, v, bounds(lens), scale=0.2), eager, exact)


@pytest.mark.parametrize(
    ("query_heads", "kv_heads", "size"),
    [(1, 1, 64), (4, 4, 80), (2, 1, 96), (2, 2, 128), (70, 1, 32), (8, 1, 256), (2, 1, 160), (9, 3, 5)],
)
def test_any_grouping_and_any_head_size_is_as_exact_as_torch(query_heads, kv_heads, size, dtype, backend):
    lens = [3, 40] if backend == "triton" else [3, 150, 40]
    q, k, v = heads(sum(lens), query_heads, kv_heads, size, dtype)
    exact = plain_attention(q.double(), k.double(), v.double(), lens, scale=size**-0.5)
    eager = plain_attention(q, k, v, lens, scale=size**-0.5)
    assert_as_good_as_torch(ops.attention_varlen(q, k, v, bounds(lens), scale=size**-0.5), eager, exact)


def test_the_log_sum_exp_is_as_exact_as_torch(dtype, lens):
    q, k, v = heads(sum(lens), 6, 2, 16, dtype)
    option = as_given(OPTIONS["all"])
    _, lse = ops.attention_varlen(q, k, v, bounds(lens), scale=0.2, return_lse=True, **option)
    exact = plain_lse(q.double(), k.double(), lens, scale=0.2, **option)
    eager = plain_lse(q.float(), k.float(), lens, scale=0.2, **option)  # it is in float32, whatever q is in
    assert_as_good_as_torch(lse, eager, exact)


def test_scores_of_hundreds_do_not_overflow(backend):
    lens, num_heads = ([70], 2) if backend == "triton" else ([200], 32)  # in one head alone it is chance who errs less
    q, k, v = heads(sum(lens), num_heads, 1, 16, torch.float32)
    exact = plain_attention(q.double(), k.double(), v.double(), lens, scale=200.0)
    eager = plain_attention(q, k, v, lens, scale=200.0)
    assert_as_good_as_torch(ops.attention_varlen(q, k, v, bounds(lens), scale=200.0), eager, exact)


@pytest.mark.parametrize("cache_dtype", SCALED, ids=["int8", "float8_e4m3fn"])
def test_a_cache_in_8_bits_is_attended_to_as_exactly_as_torch_does_to_its_numbers(cache_dtype, dtype):
    lens = [130, 20]
    q, k, v = heads(sum(lens), 6, 2, 16, dtype)
    option = as_given(OPTIONS["all"])
    pages = filled_pages(lens, 2 * k, v / 5, cache_dtype)
    k, v = stored_numbers(pages)
    exact = plain_attention(q.double(), k, v, lens, scale=0.2, **option)
    eager = plain_attention(q, k.to(dtype), v.to(dtype), lens, scale=0.2, **option)
    seq_lens = torch.tensor(lens).int()
    prefilled = ops.paged_prefill(q, pages.cache, pages.block_tables, seq_lens, bounds(lens), scale=0.2, **option)
    assert_as_good_as_torch(prefilled, eager, exact)
    last = bounds(lens)[1:] - 1
    decoded = ops.paged_decode(q[last], pages.cache, pages.block_tables, seq_lens, scale=0.2, **option)
    assert torch.equal(decoded, prefilled[last])


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [(torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.float16)],
)
def test_a_cache_in_another_float_dtype_is_read_as_it_was_rounded(dtype, cache_dtype):
    lens = [140]
    q, k, v = heads(140, 4, 2, 16, dtype)
    pages = filled_pages(lens, k, v, cache_dtype)
    seq_lens = torch.tensor(lens).int()
    ours = ops.paged_decode(q[-1:], pages.cache, pages.block_tables, seq_lens, scale=0.2)
    rounded = ops.attention_varlen(q, k.to(cache_dtype).to(dtype), v.to(cache_dtype).to(dtype), bounds(lens), scale=0.2)
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
    prefilled = ops.paged_prefill(q[[19, 3]], *caches, torch.tensor([0, 1, 1, 2]).int(), scale=0.2)
    assert torch.equal(prefilled, decoded[1:])


def test_no_tokens_at_all_give_nothing():
    q, k, v = heads(0, 4, 2, 16, torch.float32)
    assert ops.attention_varlen(q, k, v, torch.zeros(1, dtype=torch.int32), scale=1.0).shape == (0, 4, 16)
    assert ops.attention_varlen(q, k, v, torch.zeros(3, dtype=torch.int32), scale=1.0).shape == (0, 4, 16)


def filled_pages(lens: list[int], k: Tensor, v: Tensor, dtype: torch.dtype) -> Paged:
    pages = empty_pages(lens, block_size=16, kv_heads=k.shape[1], head_size=k.shape[2], dtype=dtype)
    write(pages, k, v, torch.cat(pages.slots))
    return pages


def stored_numbers(pages: Paged) -> tuple[Tensor, Tensor]:
    """The keys and values that an 8-bit cache holds, in float64, as they would lie packed."""
    slots, cache = torch.cat(pages.slots), pages.cache
    assert cache.k_scales is not None
    assert cache.v_scales is not None
    k, v = (x.float().double().flatten(0, 1)[slots] for x in (cache.k, cache.v))
    k_scales, v_scales = (x.double().flatten(0, 1)[slots] for x in (cache.k_scales, cache.v_scales))
    return k * k_scales[..., None], v * v_scales[..., None]
