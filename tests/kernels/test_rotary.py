"""Rotary positions."""

import pytest
import torch
from torch import Tensor

from polyserve_kernels import ops
from support.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("backend", "poisoned")


def plain_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    half = cos.shape[1]
    first = torch.arange(half) * 2 if interleaved else torch.arange(half)
    second = first + 1 if interleaved else first + half
    cos, sin, out = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype), x.clone()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def angles(num_tokens: int, half: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(num_tokens)[:, None] * torch.rand(half)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turning", [2, 20, 64])
def test_it_is_as_exact_as_torch_in_both_layouts_whole_and_partial(turning, interleaved, dtype):
    q, k = torch.randn(11, 6, 64).to(dtype), torch.randn(11, 2, 64).to(dtype)
    cos, sin = angles(11, turning // 2)
    for x, ours in zip((q, k), ops.rotary(q, k, cos, sin, interleaved=interleaved), strict=True):
        eager = plain_rotary(x, cos, sin, interleaved=interleaved)
        exact = plain_rotary(x.double(), cos.double(), sin.double(), interleaved=interleaved)
        assert_as_good_as_torch(ours, eager, exact)


def test_elements_behind_the_turning_ones_stay():
    q = torch.randn(5, 2, 16)
    turned, _ = ops.rotary(q, q, *angles(5, 3))
    assert torch.equal(turned[..., 6:], q[..., 6:])
    assert not torch.equal(turned[1:, :, :6], q[1:, :, :6])


def test_the_arguments_are_left_as_they_were():
    q, k = torch.randn(5, 2, 16), torch.randn(5, 1, 16)
    before = q.clone(), k.clone()
    ops.rotary(q, k, *angles(5, 8))
    assert torch.equal(q, before[0])
    assert torch.equal(k, before[1])


def test_strides_do_not_matter(dtype):
    heads = torch.randn(7, 8, 32).to(dtype)
    q, k = heads[:, :6], heads[:, 6:7]
    cos, sin = angles(7, 16)
    strided = ops.rotary(q, k, cos, sin)
    packed = ops.rotary(q.contiguous(), k.contiguous(), cos, sin)
    assert torch.equal(strided[0], packed[0])
    assert torch.equal(strided[1], packed[1])


def test_the_turning_part_may_be_nothing_or_of_any_even_size():
    q, k = torch.randn(3, 5, 10), torch.randn(3, 1, 10)
    for turning in (0, 2, 8, 10):
        cos, sin = angles(3, turning // 2)
        for interleaved in (False, True):
            ours = ops.rotary(q, k, cos, sin, interleaved=interleaved)
            for x, turned in zip((q, k), ours, strict=True):
                assert torch.equal(turned, plain_rotary(x, cos, sin, interleaved=interleaved))


def test_slices_of_one_projection_turn_where_they_lie(dtype):
    qkv = torch.randn(5, (20 + 2 * 4) * 16).to(dtype)
    q, k = qkv[:, : 20 * 16].unflatten(1, (20, 16)), qkv[:, 20 * 16 : 24 * 16].unflatten(1, (4, 16))
    cos, sin = (x.t().contiguous().t() for x in angles(5, 8))
    for strided, packed in zip(
        ops.rotary(q, k, cos, sin), ops.rotary(q.contiguous(), k.contiguous(), cos, sin), strict=True
    ):
        assert torch.equal(strided, packed)


def test_no_tokens_are_no_tokens():
    q, k = ops.rotary(torch.empty(0, 4, 8), torch.empty(0, 2, 8), *angles(0, 4))
    assert q.shape == (0, 4, 8)
    assert k.shape == (0, 2, 8)
