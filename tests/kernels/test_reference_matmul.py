"""How the reference keeps the bits of the dense product: tiles of the weight, and chunks of rows."""

import pytest
import torch
from torch.nn.functional import linear

from polyserve_kernels.reference import matmul as reference
from support.gradients import assert_gradients
from support.tolerance import assert_as_good_as_torch


@pytest.mark.parametrize("num_outputs", [1023, 1024, 1025, 2500])
def test_it_is_as_exact_as_torch_one_less_and_one_more_than_a_weight_tile(num_outputs):
    x, w = torch.randn(50, 600), torch.randn(num_outputs, 600)
    assert reference.weight_tile_rows(600) == 1024
    ours = reference.matmul(x, w, None, out_dtype=torch.float32)
    assert_as_good_as_torch(ours, linear(x, w), linear(x.double(), w.double()))


@pytest.mark.usefixtures("threads")
def test_bits_are_those_of_plain_chunks_where_others_are_not_trusted(monkeypatch, dtype):
    x, w = torch.randn(150, 576).to(dtype), torch.randn(1200, 576).to(dtype)
    tried = reference.matmul(x, w, None, out_dtype=dtype)
    monkeypatch.setattr(reference, "_same_bits", lambda *_: False)
    assert torch.equal(reference.matmul(x, w, None, out_dtype=dtype), tried)


def test_a_trial_sees_sums_in_another_order_through_the_rounding_to_bfloat16(monkeypatch):
    shape = (64, 600, torch.bfloat16, False, torch.device("cpu"), 1)
    multiply = reference._multiply

    def in_another_order(tile, chunk, bias):
        if len(chunk) == reference.ROWS:
            return multiply(tile, chunk, bias)
        return torch.mm(chunk.flip(1).float(), tile.flip(1).float().t()).bfloat16()

    monkeypatch.setattr(reference, "_multiply", in_another_order)
    assert not reference._same_bits.__wrapped__(32, *shape)


def test_gradients_in_bfloat16_are_rounded_once_however_many_chunks_there_are():
    assert_gradients(
        lambda x, w, bias: reference.matmul(x, w, bias, out_dtype=torch.bfloat16),
        linear,
        *((1600, 48), (40, 48), (40,)),
        dtype=torch.bfloat16,
    )
