"""What only the Triton kernels of attention have: splits and their fold, ids that they must mask, and planted bugs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.dispatch import use_backend
from polyserve_kernels.triton import attention, attention_decode, attention_tile, tuning
from polyserve_kernels.triton.attention_tile import head_parts
from polyserve_kernels.types import BlockCache
from support.attention_cases import bounds, heads
from support.paged import empty_pages, write
from support.plain_attention import plain_attention
from support.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("poisoned")
LENS = [70, 3]
OPTION = {"scale": 0.2, "window": 66, "soft_cap": 3.0}
SLOPES = (0.05, -0.03)  # small, so that the oldest keys of the window still weigh something


@pytest.fixture(autouse=True)
def _on_triton() -> Iterator[None]:
    with use_backend("triton"):
        yield


def decoded(q: Tensor, k: Tensor, v: Tensor, **option: object) -> Tensor:
    """The last token of each sequence, decoded."""
    pages = empty_pages(LENS, block_size=16, kv_heads=k.shape[1], head_size=k.shape[2], dtype=k.dtype)
    write(pages, k, v, torch.cat(pages.slots))
    last = bounds(LENS)[1:] - 1
    return ops.paged_decode(q[last], pages.cache, pages.block_tables, torch.tensor(LENS).int(), **option)


@pytest.mark.parametrize("programs", [1, 6, 1000])
def test_a_token_has_the_same_bits_however_many_programs_share_its_keys(programs, monkeypatch, dtype):
    q, k, v = heads(sum(LENS), 2, 1, 16, dtype)
    table = {
        arch: {size: replace(row, decode_programs=programs) for size, row in by_size.items()}
        for arch, by_size in tuning.ATTENTION.items()
    }
    monkeypatch.setattr(tuning, "ATTENTION", table)
    monkeypatch.setattr(tuning, "_INTERPRETED_DECODE_PROGRAMS", programs)
    packed = ops.attention_varlen(q, k, v, bounds(LENS), scale=0.2)
    assert torch.equal(decoded(q, k, v, scale=0.2), packed[bounds(LENS)[1:] - 1])


def test_blocks_that_a_cache_does_not_have_are_not_read():
    q, _, _ = heads(3, 2, 1, 16, torch.float32)
    cache = BlockCache(torch.ones(2, 16, 1, 16), torch.ones(2, 16, 1, 16))
    tables = torch.tensor([[0, 10**6], [-7, 1], [1, 0]]).int()
    seq_lens = torch.tensor([20, 20, 1000]).int()  # the last one is longer than its table
    decoded = ops.paged_decode(q, cache, tables, seq_lens, scale=0.2)
    assert decoded.isfinite().all()
    assert (decoded[2] == 1).all()
    prefilled = ops.paged_prefill(q, cache, tables, seq_lens, torch.arange(4).int(), scale=0.2)
    assert torch.equal(prefilled, decoded)


@pytest.mark.parametrize("size", [1, 5, 16, 64, 80, 96, 100, 128, 160, 256])
def test_the_parts_of_a_head_follow_each_other_and_cover_it(size):
    for largest in (16, 32, 128):
        parts = head_parts(size, largest)
        assert [start for start, _ in parts] == [sum(length for _, length in parts[:i]) for i in range(len(parts))]
        assert all(length in (16, 32, 64, 128) and length <= largest for _, length in parts)
        assert 0 <= sum(length for _, length in parts) - size < 16


@triton.jit
def _sees_the_next_key(scores, q_pos, k_pos, window):
    return tl.where((k_pos <= q_pos + 1) & (k_pos > q_pos - window), scores, float("-inf"))


@triton.jit
def _sees_one_key_too_far_back(scores, q_pos, k_pos, window):
    return tl.where((k_pos <= q_pos) & (k_pos >= q_pos - window), scores, float("-inf"))


@triton.jit
def _leans_the_other_way(product, q_pos, k_pos, slopes, scale, cap):
    return attention_tile.capped_scores(product, scale, cap) - slopes * (k_pos - q_pos).to(tl.float32)


@triton.jit
def _forgets_the_cap(product, scale, cap):
    return product * scale * cap


@triton.jit
def _leaves_out_the_last_tile(first_pos, last_pos, window, BLOCK_N: tl.constexpr):
    return tl.maximum(first_pos - window + 1, 0) // BLOCK_N, last_pos // BLOCK_N


@triton.jit
def _weighs_alike(m_a, m_b):
    m = tl.maximum(m_a, m_b)
    return m, tl.exp2(m - m), tl.exp2(m - m)


@triton.jit
def _sees_all(key_tile, first_pos, last_pos, window, BLOCK_N: tl.constexpr):
    return key_tile * BLOCK_N <= first_pos


def check() -> None:
    """What the contract's tests ask, in one."""
    q, k, v = heads(sum(LENS), 2, 1, 16, torch.float32)
    option = OPTION | {"alibi_slopes": torch.tensor(SLOPES)}
    exact = plain_attention(q.double(), k.double(), v.double(), LENS, **option)
    eager = plain_attention(q, k, v, LENS, **option)
    packed = ops.attention_varlen(q, k, v, bounds(LENS), **option)
    assert_as_good_as_torch(packed, eager, exact)
    assert torch.equal(decoded(q, k, v, **option), packed[bounds(LENS)[1:] - 1])


def test_kernels_without_planted_bugs_pass():
    check()


@pytest.mark.parametrize(
    ("module", "name", "bug"),
    [
        (attention_tile, "seen_scores", _sees_the_next_key),
        (attention_tile, "seen_scores", _sees_one_key_too_far_back),
        (attention_tile, "placed_scores", _leans_the_other_way),
        (attention_tile, "capped_scores", _forgets_the_cap),
        (attention, "all_seen", _sees_all),
        (attention, "merge_maxima", _weighs_alike),
        (attention_decode, "merge_maxima", _weighs_alike),
        (attention_decode, "find_key_tiles", _leaves_out_the_last_tile),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_planted_bug_is_caught(module, name, bug, monkeypatch):
    monkeypatch.setattr(module, name, bug)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.slow
def test_compiled_kernels_sum_a_row_in_one_order_packed_prefilled_and_decoded():
    """The interpreter cannot see this: on a GPU the order of a sum is that of the threads that hold it."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "support.attention_layouts"],
        check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], env=environment,
    )  # fmt: skip
    told: dict[str, list[str]] = json.loads(run.stdout)
    for arch in ("80", "90", "100"):
        for size in ("64", "256"):
            same = [layouts for name, layouts in told.items() if name.split()[1:] == [arch, size]]
            assert len(same) == 4
            assert all(layouts == same[0] for layouts in same)
            assert len(same[0]) == 1
