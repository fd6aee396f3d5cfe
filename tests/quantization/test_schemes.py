"""Quantised values are the nearest ones that their scales allow."""

import pytest
import torch

from polyserve.quantization.schemes import Scheme
from polyserve_kernels import ops

SCHEMES = [Scheme("int8"), Scheme("int8", 64), Scheme("int4", 16), Scheme("int4", 128)]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


@every_scheme
def test_no_value_is_farther_away_than_half_a_step(scheme):
    w = torch.randn(33, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 1, 33)[:, None]
    quantized = scheme.quantize(w)
    steps = quantized.scales.float().repeat_interleave(scheme.group or 256, dim=1)
    rounding = w.abs().amax(1, keepdim=True) * (2**-9 if scheme.name == "int4" else 2**-20)  # of minimums, and floats
    assert ((ops.dequantize(quantized, torch.float32) - w).abs() <= steps * 0.5 + rounding).all()


@every_scheme
def test_what_is_exact_stays_exact(scheme):
    whole = torch.arange(256).remainder(16).float().repeat(3, 1)
    if scheme.name == "int8":
        whole[:, ::16] = 127.0  # so that a step is 1, as it is from 0 to 15
    assert torch.equal(ops.dequantize(scheme.quantize(whole), torch.float32), whole)


@every_scheme
def test_rows_of_zeros_stay_zeros(scheme):
    assert not ops.dequantize(scheme.quantize(torch.zeros(3, 128)), torch.float32).any()


@every_scheme
def test_more_rows_than_are_held_at_once_give_the_same_values(scheme, monkeypatch):
    w = torch.randn(40, 128, generator=torch.Generator().manual_seed(1))
    whole = scheme.quantize(w)
    monkeypatch.setattr("polyserve.quantization.schemes.ELEMENTS_AT_A_TIME", 3 * 128)
    parts = scheme.quantize(w)
    assert torch.equal(parts.values, whole.values)
    assert torch.equal(parts.scales, whole.scales)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@every_scheme
def test_values_that_are_not_finite_are_refused(scheme, value):
    w = torch.ones(2, 128)
    w[1, 5] = value
    with pytest.raises(ValueError, match="finite"):
        scheme.quantize(w)


def test_channels_that_are_no_whole_groups_are_refused():
    with pytest.raises(ValueError, match="100 channels are not a multiple of groups of 32"):
        Scheme("int4", 32).quantize(torch.ones(1, 100))


@pytest.mark.parametrize(("name", "group", "message"), [("int4", None, "must be given"), ("int8", 5, "one of 16, 32")])
def test_groups_that_kernels_do_not_have_are_refused(name, group, message):
    with pytest.raises(ValueError, match=message):
        Scheme(name, group)
