"""Gradients of attention: as exact as torch's own, the same in every run, and a sequence's own affair."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.dispatch import use_backend
from polyserve_kernels.triton import attention_backward
from support.gradients import assert_gradients
from support.plain_attention import plain_attention

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window of two": {"window": 2},  # of one, there would be no gradient to be exact about
    "window": {"window": 70},
    "soft cap": {"soft_cap": 2.0},
    "alibi": {"alibi_slopes": (0.5, 0.3)},
    "all": {"window": 100, "soft_cap": 3.0, "alibi_slopes": (0.25, 0.01)},
}
on_triton = pytest.mark.parametrize("backend", ["triton"], indirect=True)
in_each_dtype = pytest.mark.parametrize(
    ("backend", "dtype"),  # the reference leaves float32 to torch's autograd, whose delta misses the bound
    [("cpu", torch.bfloat16), ("reference", torch.bfloat16), ("triton", torch.bfloat16), ("triton", torch.float32)],
    ids=["cpu-bfloat16", "reference-bfloat16", "triton-bfloat16", "triton-float32"],
    indirect=["backend"],
)


def bounds(lens: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lens]).cumsum(0).int()


def shapes(lens: Sequence[int], query_heads: int, kv_heads: int, size: int) -> tuple[tuple[int, int, int], ...]:
    keys = (sum(lens), kv_heads, size)
    return (sum(lens), query_heads, size), keys, keys


def slopes_as_tensor(option: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.tensor(x) if name == "alibi_slopes" else x for name, x in option.items()}


def check(
    lens: list[int],
    heads: tuple[int, int, int],  # query heads, key and value heads, size
    dtype: torch.dtype,
    *,
    scale: float = 0.2,
    **option: Any,
) -> None:
    option = slopes_as_tensor(option) | {"scale": scale}
    assert_gradients(
        lambda q, k, v: ops.attention_varlen(q, k, v, bounds(lens), **option),
        lambda q, k, v: plain_attention(q, k, v, lens, **option),
        *shapes(lens, *heads),
        dtype=dtype,
    )


@in_each_dtype
@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_is_as_exact_as_torch(option, dtype, backend, poisoned):
    check([3, 150, 0, 20], (2, 1, 16), dtype, **option)


@in_each_dtype
@pytest.mark.parametrize("heads", [(6, 2, 5), (2, 2, 64), (2, 1, 80), (1, 1, 96), (4, 1, 128), (2, 1, 256)], ids=str)
def test_every_grouping_and_head_size_is_as_exact_as_torch(heads, dtype, backend, poisoned):
    check([2, 40], heads, dtype, scale=heads[2] ** -0.5)


@in_each_dtype
@pytest.mark.parametrize("lens", [[0, 1, 63, 64, 65], [127, 128, 129], [1, 2, 1, 3]], ids=str)
def test_lengths_about_a_tile_are_as_exact_as_torch(lens, dtype, backend, poisoned):
    check(lens, (1, 1, 16), dtype)


def test_sixteen_bits_of_another_kind_are_as_exact_as_torch(backend, poisoned):
    check([3, 150, 20], (2, 1, 16), torch.float16, **OPTIONS["all"])


def test_scores_of_hundreds_do_not_overflow(backend, poisoned):
    check([70], (2, 1, 16), torch.float32, scale=100.0)


def test_training_works_after_the_same_step_was_served(backend):
    q, k, v = torch.randn(30, 4, 8), torch.randn(30, 2, 8), torch.randn(30, 2, 8)
    with torch.inference_mode():
        served = ops.attention_varlen(q, k, v, bounds([30]), scale=0.3)
    trained = ops.attention_varlen(q.requires_grad_(), k, v, bounds([30]), scale=0.3)
    trained.sum().backward()  # of ones that lie in one place in memory
    assert torch.equal(served, trained)
    assert q.grad is not None


@on_triton
def test_no_tokens_have_no_gradients(backend, poisoned):
    for lens in ([], [0, 0]):
        assert of_packed(lens, torch.randn(0, 4, 16), torch.randn(0, 2, 16)).shape == (0, 4, 16)


def test_the_log_sum_exp_has_no_gradient(backend):
    q, k, v = (torch.randn(5, 2, 8, requires_grad=True) for _ in range(3))
    _, lse = ops.attention_varlen(q, k, v, bounds([5]), scale=0.3, return_lse=True)
    assert not lse.requires_grad


def split_heads(qkv: Tensor) -> tuple[Tensor, ...]:
    """q, k and v that lie side by side, two heads of queries to one of keys."""
    heads = qkv.shape[1] // 4
    return qkv.split((2 * heads, heads, heads), dim=1)


def of_packed(lens: Sequence[int], qkv: Tensor, dout: Tensor, **option: Any) -> Tensor:
    """The gradient of qkv, [T, 4, D]."""
    qkv = qkv.detach().requires_grad_()
    out = ops.attention_varlen(*split_heads(qkv), bounds(lens), scale=0.2, **slopes_as_tensor(option))
    return torch.autograd.grad(out, qkv, dout)[0]


@on_triton
@pytest.mark.parametrize(("option", "dtype"), [("plain", torch.float32), ("all", torch.bfloat16)])
def test_a_sequence_has_the_same_gradients_alone_and_in_any_company(option, dtype, backend, poisoned):
    lens, option = [1, 131, 64], OPTIONS[option]
    qkv, dout = torch.randn(sum(lens), 4, 16).to(dtype), torch.randn(sum(lens), 2, 16).to(dtype)
    packed = of_packed(lens, qkv, dout, **option)
    again = of_packed(lens, qkv, dout, **option)
    alone = [of_packed([len(x)], x, y, **option) for x, y in zip(qkv.split(lens), dout.split(lens), strict=True)]
    assert torch.equal(again, packed)
    assert torch.equal(torch.cat(alone), packed)


def test_heads_of_any_strides_have_the_gradients_of_contiguous_ones(dtype, backend, poisoned):
    qkv, dout = torch.randn(70, 4, 16).to(dtype), torch.randn(70, 2, 16).to(dtype)
    expected = of_packed([70], qkv, dout)
    q, k, v = (x.clone().requires_grad_() for x in split_heads(qkv))
    out = ops.attention_varlen(q, k, v, bounds([70]), scale=0.2)
    of_contiguous = torch.cat(torch.autograd.grad(out, (q, k, v), dout), dim=1)
    of_columns = of_packed([70], qkv.transpose(0, 2).contiguous().transpose(0, 2), dout.mT.contiguous().mT)
    assert torch.equal(of_contiguous, expected)
    assert torch.equal(of_columns, expected)


def test_gradients_that_nobody_wants_are_left_out(backend, poisoned):
    qkv, dout = torch.randn(20, 4, 8), torch.randn(20, 2, 8)
    expected = split_heads(of_packed([20], qkv, dout))
    for wanted in range(3):
        parts = list(split_heads(qkv))
        parts[wanted] = parts[wanted].detach().requires_grad_()
        out = ops.attention_varlen(*parts, bounds([20]), scale=0.2)
        assert torch.equal(torch.autograd.grad(out, parts[wanted], dout)[0], expected[wanted])


# Bugs planted in what the kernels call. Only interpreted kernels look these names up when they run.

right_scores, right_lse = attention_backward.score_tile, attention_backward._load_lse
right_key_tiles = attention_backward.find_key_tiles


@triton.jit
def one_key_too_many(product, q_pos, k_pos, slopes, scale, cap, window):
    return right_scores(product, q_pos + 1, k_pos, slopes, scale, cap, window)


@triton.jit
def one_key_too_few(product, q_pos, k_pos, slopes, scale, cap, window):
    return right_scores(product, q_pos, k_pos, slopes, scale, cap, window - 1)


@triton.jit
def wrong_slope(product, q_pos, k_pos, slopes, scale, cap, window):
    return right_scores(product, q_pos, k_pos, slopes * 1.05, scale, cap, window)


@triton.jit
def without_the_second_query_tile(lse_ptr, rows, there):
    dropped = (rows // 2 >= 64) & (rows // 2 < 128)  # of 64 tokens, with two query heads
    return tl.where(dropped, float("inf"), right_lse(lse_ptr, rows, there))


@triton.jit
def without_the_last_key_tile(first_token, last_token, window, BLOCK_N: tl.constexpr):
    first, end = right_key_tiles(first_token, last_token, window, BLOCK_N)
    return first, tl.maximum(end - 1, first + 1)


@triton.jit
def without_the_bend(p, dp, delta, product, scale, cap):
    return p * (dp - delta)


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("score_tile", one_key_too_many),
        ("score_tile", one_key_too_few),
        ("score_tile", wrong_slope),
        ("_load_lse", without_the_second_query_tile),
        ("find_key_tiles", without_the_last_key_tile),
        ("_score_gradients", without_the_bend),
    ],
)
def test_these_tests_catch_planted_bugs(name, bug, monkeypatch):
    monkeypatch.setattr(attention_backward, name, bug)
    with use_backend("triton"), pytest.raises(AssertionError, match="error"):
        check([150], (2, 1, 16), torch.bfloat16, **OPTIONS["all"])
