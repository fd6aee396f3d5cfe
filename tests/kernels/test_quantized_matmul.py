"""The product with a weight of 8 or 4 bits: x w^T + bias."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from polyserve_kernels import ops
from polyserve_kernels.checks import check_float8
from polyserve_kernels.triton import quantized_matmul as triton_quantized
from polyserve_kernels.triton import tuning
from polyserve_kernels.triton.launch import INTERPRETED, architecture
from polyserve_kernels.types import QuantizedWeight
from support.gradients import gradients
from support.quantized import exact, quantized
from support.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("backend", "poisoned")

SCHEMES = [
    ("int8", None), ("int8", 16), ("int8", 128), ("int4", 16), ("int4", 32), ("int4", 64), ("int4", 128),
    ("fp8", None), ("fp8", 32),
]  # fmt: skip
every_scheme = pytest.mark.parametrize(("scheme", "group"), SCHEMES)
every_kind = pytest.mark.parametrize(("scheme", "group"), [("int8", None), ("int4", 32), ("fp8", 32)])


def as_rounded(w: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """The weight in dtype, by the words of its contract: the product rounded to float32, then the sum, then once."""
    if w.minimums is None:
        return exact(w).float().to(dtype)
    product = exact(replace(w, minimums=torch.zeros_like(w.minimums))).float()
    return (product + w.minimums.float().repeat_interleave(w.group_size, 1)).to(dtype)


@every_scheme
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16], ids=["float32 scales", "bfloat16 scales"])
def test_it_is_as_exact_as_torch(scheme, group, scale_dtype, dtype):
    x, bias = torch.randn(20, 256).to(dtype), torch.randn(70).to(dtype)
    w = quantized(torch.randn(70, 256), scheme, group, scale_dtype)
    eager = linear(x, as_rounded(w, dtype), bias)
    assert_as_good_as_torch(ops.quantized_matmul(x, w, bias), eager, linear(x.double(), exact(w), bias.double()))


@pytest.mark.parametrize(("num_outputs", "channels"), [(1, 16), (31, 48), (33, 112), (65, 144), (129, 208)])
@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8"])
def test_sizes_may_be_a_multiple_of_no_block(num_outputs, channels, scheme, dtype):
    x, w = torch.randn(5, channels).to(dtype), quantized(torch.randn(num_outputs, channels), scheme, 16)
    exactly = linear(x.double(), exact(w))
    assert_as_good_as_torch(ops.quantized_matmul(x, w), linear(x, as_rounded(w, dtype)), exactly)


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_a_scale_for_a_whole_row_takes_any_number_of_channels(scheme):
    x, w = torch.randn(5, 77).bfloat16(), quantized(torch.randn(30, 77), scheme)
    assert_as_good_as_torch(
        ops.quantized_matmul(x, w), linear(x, as_rounded(w, torch.bfloat16)), linear(x.double(), exact(w))
    )  # fmt: skip


def test_half_precision_is_supported():
    x, w = torch.randn(5, 64).half(), quantized(torch.randn(30, 64), "int4", 32, torch.float16)
    assert_as_good_as_torch(
        ops.quantized_matmul(x, w), linear(x, as_rounded(w, torch.float16)), linear(x.double(), exact(w))
    )


@every_scheme
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16], ids=["float32 scales", "bfloat16 scales"])
def test_the_weight_is_rounded_as_it_says(scheme, group, scale_dtype, dtype):
    w = quantized(torch.randn(40, 128), scheme, group, scale_dtype)
    assert torch.equal(ops.quantized_matmul(torch.eye(128).to(dtype), w), as_rounded(w, dtype).t())


def test_the_even_channel_of_a_byte_is_in_its_low_half():
    values = torch.tensor([[0x21, 0x43] + [0] * 6], dtype=torch.uint8)
    w = QuantizedWeight(scheme="int4", values=values, scales=torch.ones(1, 1), minimums=torch.zeros(1, 1))
    assert ops.quantized_matmul(torch.eye(16), w)[:5, 0].tolist() == [1, 2, 3, 4, 0]


@every_kind
@pytest.mark.parametrize("num_rows", [3, 300])  # 300: the weight is dequantised before it is multiplied
def test_it_has_the_bits_of_the_dense_product(scheme, group, num_rows, dtype):
    x, bias = torch.randn(num_rows, 160).to(dtype), torch.randn(70).to(dtype)
    w = quantized(torch.randn(70, 160), scheme, group)
    assert torch.equal(ops.quantized_matmul(x, w, bias), ops.matmul(x, as_rounded(w, dtype), bias))


def test_channels_that_the_dense_product_cuts_into_parts_are_cut_alike():
    x, bias = torch.randn(3, 4224).bfloat16(), torch.randn(20).bfloat16()
    w = quantized(torch.randn(20, 4224), "int4", 128)
    assert torch.equal(ops.quantized_matmul(x, w, bias), ops.matmul(x, as_rounded(w, torch.bfloat16), bias))


@every_kind
def test_a_row_has_the_same_bits_in_any_company(scheme, group, dtype):
    x, w = torch.randn(300, 192).to(dtype), quantized(torch.randn(40, 192), scheme, group)
    many = ops.quantized_matmul(x, w)
    for rows in (slice(0, 1), slice(1, 18), slice(18, 83), slice(299, 300)):
        assert torch.equal(ops.quantized_matmul(x[rows], w), many[rows])


def test_float32_sums_come_back_unrounded():
    x, w = torch.randn(5, 96).bfloat16(), quantized(torch.randn(30, 96), "int4", 32)
    sums = ops.quantized_matmul(x, w, out_dtype=torch.float32)
    assert sums.dtype == torch.float32
    assert torch.equal(sums, ops.matmul(x, as_rounded(w, torch.bfloat16), out_dtype=torch.float32))


def test_strides_do_not_matter(dtype):
    x, w = torch.randn(20, 2, 64).to(dtype), quantized(torch.randn(30, 64), "int4", 16)
    turned = replace(w, scales=w.scales.t().contiguous().t(), minimums=w.minimums.t().contiguous().t())
    plain = ops.quantized_matmul(x[:, 1].contiguous(), w)
    assert torch.equal(ops.quantized_matmul(x[:, 1], turned), plain)


def test_no_rows_are_no_rows():
    w = quantized(torch.randn(30, 64), "int8")
    assert ops.quantized_matmul(torch.empty(0, 64), w).shape == (0, 30)
    assert ops.quantized_matmul(torch.empty(0, 64).bfloat16(), w).shape == (0, 30)


def test_nan_in_one_row_stays_in_that_row():
    x, w = torch.randn(20, 32).bfloat16(), quantized(torch.randn(10, 32), "int4", 16)
    clean = ops.quantized_matmul(x, w)
    x[3] = torch.nan
    dirty = ops.quantized_matmul(x, w)
    rest = torch.arange(20) != 3
    assert dirty[3].isnan().all()
    assert torch.equal(dirty[rest], clean[rest])


@every_kind
def test_gradients_pass_to_x_and_bias(scheme, group, dtype):
    x, bias, w = torch.randn(20, 64).to(dtype), torch.randn(30).to(dtype), quantized(torch.randn(30, 64), scheme, group)
    ours = gradients(lambda x, bias: ops.quantized_matmul(x, w, bias), (x, bias))
    eager = gradients(lambda x, bias: linear(x, as_rounded(w, dtype), bias), (x, bias))
    exactly = gradients(lambda x, bias: linear(x, exact(w), bias), (x.double(), bias.double()))
    for a, b, c in zip(ours, eager, exactly, strict=True):
        assert_as_good_as_torch(a, b, c)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@every_scheme
def test_every_tile_gives_the_same_bits(scheme, group, monkeypatch):
    x, w = torch.randn(70, 256).bfloat16(), quantized(torch.randn(70, 256), scheme, group)
    plain = ops.quantized_matmul(x, w)
    for tile in tuning.QUANTIZED_PRODUCTS[architecture(x.device)]:
        tile = replace(tile, block_k=64) if INTERPRETED else tile
        monkeypatch.setattr(triton_quantized, "quantized_tile_for", lambda *_, tile=tile: tile)
        assert torch.equal(ops.quantized_matmul(x, w), plain), tile


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_the_dequantised_panels_of_many_rows_fit_together(monkeypatch):
    x, w = torch.randn(5, 64).bfloat16(), quantized(torch.randn(600, 64), "int4", 32)
    bias = torch.randn(600).bfloat16()
    plain = ops.quantized_matmul(x, w, bias)
    monkeypatch.setattr(triton_quantized, "_MANY_ROWS", 0)
    monkeypatch.setattr(triton_quantized, "_PANEL_BYTES", 1)
    assert torch.equal(ops.quantized_matmul(x, w, bias), plain)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_few_rows_never_hold_the_dequantised_weight(monkeypatch):
    def refuse(*_: object) -> Tensor:
        raise AssertionError("the weight was dequantised")

    monkeypatch.setattr(triton_quantized, "dequantized", refuse)
    ops.quantized_matmul(torch.randn(256, 64).bfloat16(), quantized(torch.randn(30, 64), "int4", 32))


def test_fp8_is_refused_where_a_gpu_has_no_such_numbers(monkeypatch):
    class OnAnA100:
        dtype, is_cuda, device = torch.float8_e4m3fn, True, torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ValueError, match=r"a weight in float8_e4m3fn needs a GPU of sm_89 or later, got sm_80"):
        check_float8("a weight", OnAnA100())
