"""Weights packed for a CPU: nothing is lost, and a row's product is as exact as its sums and free of company."""

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.cpu import library
from polyserve_kernels.types import GGUF_FORMATS, PackedWeight, WeightFormat
from support.quantized import exact, quantized
from support.tolerance import assert_as_good_as_torch

pytestmark = [
    pytest.mark.skipif(not library.runs_here(), reason="there is no compiled library here"),
    pytest.mark.usefixtures("_instruction_set"),
]
every_type = pytest.mark.parametrize("name", GGUF_FORMATS)
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)} | dict.fromkeys(("Q4_K", "Q5_K", "Q4_1", "Q5_1"), (0, 2))


def packed(source: Tensor, form: WeightFormat, channels: int) -> PackedWeight:
    """With its rows turned around."""
    w = ops.packed_weight([(len(source), form)], channels)
    ops.pack(w, source, torch.arange(len(source)).flip(0))
    return w


def gguf_rows(name: str, num_rows: int, channels: int) -> tuple[Tensor, Tensor]:
    """Blocks of random bits with sane scales, and what they stand for according to the package of the format."""
    kind = GGMLQuantizationType[name]
    size, num_bytes = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (num_rows, channels // size, num_bytes), dtype=np.uint8)
    for place in SCALES.get(name, (0,)):
        scales = random.normal(size=(num_rows, channels // size, 1)).astype(np.float16)
        blocks[:, :, place : place + 2] = scales.view(np.uint8)
    raw = blocks.reshape(num_rows, -1)
    return torch.from_numpy(raw), torch.from_numpy(gguf.quants.dequantize(raw, kind).copy())


def assert_free_of_company(x: Tensor, w: PackedWeight, y: Tensor) -> None:
    for size in range(1, 10):  # up to 8 rows are multiplied with integers that are unpacked in registers
        parts = [ops.matmul(part, w, out_dtype=torch.float32) for part in x.split(size)]
        assert torch.equal(torch.cat(parts), y), f"{size} rows at a time"


@every_type
@pytest.mark.parametrize("num_rows", [16, 71])
def test_blocks_of_gguf_keep_every_bit(name, num_rows):
    raw, weight = gguf_rows(name, num_rows, 512)
    w = packed(raw, GGUF_FORMATS[name], 512)
    assert torch.equal(ops.embedding(torch.arange(num_rows), w), weight.flip(0))
    grown = 1.2 if name == "Q2_K" else 1.04  # factors of 4 or 6 bits take 8
    assert w.nbytes <= grown * raw.nbytes * (-(-num_rows // 16) * 16 / num_rows) + 128


@every_type
def test_products_with_them_are_as_exact_as_torch_and_free_of_company(name, dtype):
    raw, weight = gguf_rows(name, 71, 512)
    w, weight, x = packed(raw, GGUF_FORMATS[name], 512), weight.flip(0), torch.randn(29, 512).to(dtype)
    y = ops.matmul(x, w, out_dtype=torch.float32)
    assert_as_good_as_torch(y, x.float() @ weight.t(), x.double() @ weight.double().t())
    assert_free_of_company(x, w, y)


@pytest.mark.parametrize(("scheme", "group"), [("int8", None), ("int8", 16), ("int4", 32), ("int4", 64), ("int4", 128)])
def test_quantised_weights_are_multiplied_without_rounding_them(scheme, group, dtype):
    source, x = quantized(torch.randn(71, 640), scheme, group, torch.bfloat16), torch.randn(29, 640).to(dtype)
    w = ops.packed_weight([(71, source.form)], 640)
    ops.pack(w, source, torch.arange(71))
    y = ops.matmul(x, w, out_dtype=torch.float32)
    assert_as_good_as_torch(y, x.float() @ exact(source).float().t(), x.double() @ exact(source).t())
    assert_free_of_company(x, w, y)


def test_a_scale_for_a_whole_row_takes_any_number_of_channels():
    source, x = quantized(torch.randn(20, 77), "int8"), torch.randn(12, 77).bfloat16()
    w = ops.packed_weight([(20, source.form)], 77)
    ops.pack(w, source, torch.arange(20))
    y = ops.matmul(x, w, out_dtype=torch.float32)
    assert_as_good_as_torch(y, x.float() @ exact(source).float().t(), x.double() @ exact(source).t())


def test_parts_in_several_formats_are_one_weight(dtype):
    raw, weight = gguf_rows("Q6_K", 40, 256)
    floats, x, bias = torch.randn(24, 256).to(dtype), torch.randn(9, 256).to(dtype), torch.randn(64).to(dtype)
    w = ops.packed_weight([(40, GGUF_FORMATS["Q6_K"]), (24, WeightFormat(dtype=dtype))], 256)
    ops.pack(w, raw, torch.arange(40))
    ops.pack(w, floats, torch.arange(24), part=1)
    whole = torch.cat([weight, floats.float()])
    exactly = x.double() @ whole.double().t() + bias.double()
    assert_as_good_as_torch(ops.matmul(x, w, bias), (x.float() @ whole.t() + bias.float()).to(dtype), exactly)
    assert torch.equal(ops.embedding(torch.tensor([63, 0, 40]), w), whole[[63, 0, 40]])


def test_floats_come_in_pieces_and_transposed_and_are_rounded_once():
    source = torch.randn(96, 33)  # [channels, rows], as GPT-2 keeps them
    w = ops.packed_weight([(33, WeightFormat(dtype=torch.bfloat16))], 96)
    for first in (0, 31, 62, 93):
        ops.pack(w, source[first : first + 31].t(), torch.arange(33), first_channel=first)
    assert torch.equal(ops.embedding(torch.arange(33), w), source.t().bfloat16().float())


def test_the_head_gives_the_same_with_a_packed_weight(dtype):
    hidden, weight = torch.randn(70, 96).to(dtype), torch.randn(2100, 96).to(dtype)
    uniforms = torch.rand(70, ops.num_vocab_tiles(2100, 96), 2).clamp(0.01, 0.99)
    w = packed(weight.flip(0), WeightFormat(dtype=dtype), 96)
    plain, ours = (ops.head_topk(hidden, x, k=20, num_top=5, uniforms=uniforms) for x in (weight, w))
    for name in ("ids", "values", "lse", "drawn_ids", "top_raw"):
        assert torch.equal(getattr(plain, name), getattr(ours, name))


@pytest.mark.parametrize(
    ("x", "fault"),
    [
        (torch.zeros(2, 31), r"w must have shape \[N, 31\], got \[4, 32\]"),
        (torch.zeros(2, 32).half(), "w must be torch.float16, got torch.float32"),
        (torch.zeros(2, 32, requires_grad=True), "w is packed: no gradient passes through it"),
    ],
)
def test_what_does_not_go_together_is_refused(x, fault):
    w = ops.packed_weight([(4, WeightFormat(dtype=torch.float32))], 32)
    with pytest.raises(ValueError, match=fault):
        ops.matmul(x, w)
