"""The dense product: x w^T + bias."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import linear

from polyserve_kernels import ops
from polyserve_kernels.triton import matmul as triton_matmul
from polyserve_kernels.triton import tuning
from polyserve_kernels.triton.launch import INTERPRETED, architecture
from support.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("backend", "poisoned")

LONG = 4096 + 8  # channels that are cut into two parts where there are few outputs; a multiple of no block


@pytest.mark.parametrize("num_rows", [0, 1, 15, 16, 17, 33, 64, 131])
def test_it_is_as_exact_as_torch_at_any_number_of_rows(num_rows, dtype):
    x, w, bias = (torch.randn(shape).to(dtype) for shape in ((131, 100), (70, 100), (70,)))
    ours = torch.cat((ops.matmul(x[:num_rows], w, bias), ops.matmul(x[num_rows:], w, bias)))
    assert_as_good_as_torch(ours, linear(x, w, bias), linear(x.double(), w.double(), bias.double()))


@pytest.mark.parametrize("num_outputs", [1, 127, 128, 129, 1023, 1024, 1025])
def test_it_is_as_exact_as_torch_one_less_and_one_more_than_a_weight_tile(num_outputs):
    x, w = torch.randn(50, 600), torch.randn(num_outputs, 600)
    assert_as_good_as_torch(ops.matmul(x, w), linear(x, w), linear(x.double(), w.double()))


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 128, LONG])
def test_it_is_as_exact_as_torch_at_any_number_of_channels(channels, dtype):
    x, w, bias = (torch.randn(shape).to(dtype) for shape in ((20, channels), (40, channels), (40,)))
    exact = linear(x.double(), w.double(), bias.double())
    assert_as_good_as_torch(ops.matmul(x, w, bias), linear(x, w, bias), exact)


def test_without_channels_there_is_the_bias_alone(dtype):
    x, w, bias = torch.empty(3, 0).to(dtype), torch.empty(5, 0).to(dtype), torch.randn(5).to(dtype)
    assert torch.equal(ops.matmul(x, w, bias), bias.expand(3, 5))
    assert torch.equal(ops.matmul(x, w), torch.zeros(3, 5, dtype=dtype))


def test_without_outputs_there_is_nothing():
    assert ops.matmul(torch.randn(3, 8), torch.empty(0, 8)).shape == (3, 0)


def test_half_precision_is_supported():
    x, w = torch.randn(9, 64).half(), torch.randn(40, 64).half()
    assert_as_good_as_torch(ops.matmul(x, w), linear(x, w), linear(x.double(), w.double()))


def test_float32_sums_of_bfloat16_operands_come_back_unrounded():
    x, w = torch.randn(9, 300).bfloat16(), torch.randn(40, 300).bfloat16()
    sums, exact = ops.matmul(x, w, out_dtype=torch.float32), linear(x.double(), w.double())
    assert_as_good_as_torch(sums, linear(x.float(), w.float()), exact)
    assert_as_good_as_torch(sums.bfloat16(), linear(x, w), exact)


def test_strides_do_not_matter(dtype):
    x, w = torch.randn(20, 2, 48).to(dtype)[:, 1], torch.randn(48, 30).to(dtype).t()
    assert torch.equal(ops.matmul(x, w), ops.matmul(x.contiguous(), w.contiguous()))
    assert torch.equal(ops.matmul(x[:, ::2], w[:, ::2]), ops.matmul(x[:, ::2].contiguous(), w[:, ::2].contiguous()))


def test_the_result_is_contiguous():
    assert ops.matmul(torch.randn(20, 48), torch.randn(30, 48)).is_contiguous()


def test_arguments_are_left_as_they_were():
    x, w, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    before = [t.clone() for t in (x, w, bias)]
    ops.matmul(x, w, bias)
    assert all(torch.equal(a, b) for a, b in zip((x, w, bias), before, strict=True))


def test_nan_in_one_row_stays_in_that_row():
    x, w = torch.randn(20, 32), torch.randn(10, 32)
    clean = ops.matmul(x, w)
    x[3] = torch.nan
    dirty = ops.matmul(x, w)
    assert dirty[3].isnan().all()
    rest = torch.arange(20) != 3
    assert torch.equal(dirty[rest], clean[rest])


@pytest.mark.parametrize("channels", [200, LONG])
def test_a_row_among_many_has_the_bits_of_a_row_alone(channels):
    x, w, bias = (torch.randn(shape).bfloat16() for shape in ((130, channels), (40, channels), (40,)))
    many = ops.matmul(x, w, bias)
    assert torch.equal(ops.matmul(x[70:71], w, bias), many[70:71])
    assert torch.equal(ops.matmul(x[110:], w, bias), many[110:])


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize(
    ("part", "few_programs"), [(200, [1]), (128, [1, 10**6])], ids=["in one part", "in two, in turn and side by side"]
)
def test_every_tile_gives_the_same_bits(part, few_programs, monkeypatch):
    x, w, bias = (torch.randn(shape).bfloat16() for shape in ((70, 200), (130, 200), (130,)))
    monkeypatch.setattr(triton_matmul, "part_channels", lambda *_: part)
    plain = ops.matmul(x, w, bias)
    for tile in tuning.PRODUCTS[architecture(x.device)]:
        tile = replace(tile, block_k=64) if INTERPRETED else tile
        monkeypatch.setattr(triton_matmul, "product_tile_for", lambda *_, tile=tile, **__: tile)
        for programs in few_programs:
            monkeypatch.setattr(triton_matmul, "PRODUCT_PROGRAMS", programs)
            assert torch.equal(ops.matmul(x, w, bias), plain), tile


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_channels_are_cut_by_their_number_and_that_of_the_outputs():
    cut = {(2048, 8192): 4096, (5120, 20480): 20480, (1152, 6912): 3456, (2048, 2048): 2048, (64, 100_000): 3200}
    assert {sizes: tuning.part_channels(*sizes) for sizes in cut} == cut
