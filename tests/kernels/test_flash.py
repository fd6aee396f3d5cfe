"""What flash-attn is asked for is what the contracts say. It needs a GPU: a stand-in plays its documentation here."""

import sys
from collections.abc import Iterator

import pytest
import torch

from polyserve_kernels import dispatch, ops
from support import stand_in_flash_attn
from support.paged import empty_pages, write

LENS = [5, 0, 300, 129, 1]
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
OPTIONS = {
    "plain": {},
    "window": {"window": 100},
    "window of one": {"window": 1},
    "soft cap": {"soft_cap": 2.0},
    "alibi": {"alibi_slopes": SLOPES},
    "all": {"window": 70, "soft_cap": 3.0, "alibi_slopes": SLOPES},
}
options = pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())


@pytest.fixture(autouse=True)
def _flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in_flash_attn)
    monkeypatch.setattr(dispatch, "_lacks", lambda name: None)
    with dispatch.use_backend("triton+flash"):
        yield


def heads(num_tokens: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    return [torch.randn(num_tokens, count, 16).to(dtype) for count in (4, 2, 2)]


def bounds(lens: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lens]).cumsum(0).int()


def assert_near(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Within one rounding to bfloat16 of the largest number: two ways to compute the same in float32."""
    assert (ours.float() - expected.float()).abs().max() <= torch.finfo(torch.bfloat16).eps * expected.abs().max()


@options
def test_packed_sequences_and_their_log_sum_exps_are_those_of_the_reference(option):
    q, k, v = heads(sum(LENS))
    ours = ops.attention_varlen(q, k, v, bounds(LENS), scale=0.3, return_lse=True, **option)
    with dispatch.use_backend("reference"):
        expected = ops.attention_varlen(q, k, v, bounds(LENS), scale=0.3, return_lse=True, **option)
    for a, b in zip(ours, expected, strict=True):
        assert_near(a, b)


@options
def test_the_paged_operations_are_those_of_the_reference(option):
    q, k, v = heads(sum(LENS))
    pages = empty_pages(LENS, block_size=256, kv_heads=2, head_size=16, dtype=torch.bfloat16)
    pages.cache.k.zero_()
    pages.cache.v.zero_()
    write(pages, k, v, torch.cat(pages.slots))
    lens, counts = torch.tensor(LENS).int(), [3, 0, 130, 1, 1]
    rows = torch.cat([torch.arange(end - n, end) for end, n in zip(bounds(LENS)[1:].tolist(), counts, strict=True)])
    last = (bounds(LENS)[1:] - 1).clamp(min=0).long()
    for name in ("triton+flash", "reference"):
        with dispatch.use_backend(name):
            prefilled = ops.paged_prefill(
                q[rows], pages.cache, pages.block_tables, lens, bounds(counts), scale=0.3, **option
            )
            decoded = ops.paged_decode(q[last], pages.cache, pages.block_tables, lens, scale=0.3, **option)
        if name == "triton+flash":
            ours = prefilled, decoded
    assert_near(ours[0], prefilled)
    assert_near(ours[1], decoded)


def test_what_the_library_cannot_take_is_refused_by_name():
    q, k, v = heads(4, torch.float32)
    with pytest.raises(ValueError, match="flash-attn takes q in bfloat16 or float16"):
        ops.attention_varlen(q, k, v, bounds([4]), scale=1.0)
    q, k, v = (torch.zeros(4, 1, 264, dtype=torch.bfloat16) for _ in range(3))
    with pytest.raises(ValueError, match="flash-attn takes head sizes up to 256, got 264"):
        ops.attention_varlen(q, k, v, bounds([4]), scale=1.0)
    q, _, _ = heads(1)
    for block_size, dtype, message in (
        (16, torch.bfloat16, "flash-attn takes block_size in multiples of 256, got 16"),
        (256, torch.float16, "flash-attn takes a cache in q's dtype, torch.bfloat16, got torch.float16"),
    ):
        pages = empty_pages([1], block_size=block_size, kv_heads=2, head_size=16, dtype=dtype)
        with pytest.raises(ValueError, match=message):
            ops.paged_decode(q, pages.cache, pages.block_tables, torch.ones(1).int(), scale=1.0)


def test_no_tokens_give_nothing():
    q, k, v = heads(0)
    assert ops.attention_varlen(q, k, v, torch.zeros(1).int(), scale=1.0).shape == (0, 4, 16)
