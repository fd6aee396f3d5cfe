"""What holds for every decoder: served rows have the bits of packed rows, and lengths have a limit."""

from pathlib import Path

import pytest
import torch

from polyserve.model.weights.load import load_model
from support.checkpoints import FAMILIES, Family, make_checkpoint
from support.logits import packed_logits, random_ids, served_logits

STEPS: dict[str, list[list[tuple[int, int]]]] = {
    "whole": [[(0, 41), (1, 5)]],
    "in chunks": [[(0, 17)], [(0, 1)], [(0, 1)], [(0, 22), (1, 5)]],
    "decoded beside a prefill": [[(0, 40)], [(0, 1), (1, 5)]],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_served_rows_have_the_bits_of_packed_rows(family: Family, dtype: torch.dtype, tmp_path: Path) -> None:
    model = load_model(make_checkpoint(tmp_path, family), dtype=dtype)
    sequences = random_ids(41, 5)
    packed = packed_logits(model, sequences)
    for name, steps in STEPS.items():
        for served, alone in zip(served_logits(model, sequences, steps), packed, strict=True):
            assert torch.equal(served, alone), name


def test_a_model_has_no_memory_until_it_is_loaded(tmp_path: Path) -> None:
    from polyserve.model.decoder import Decoder
    from polyserve.model.families import read_config

    model = Decoder(read_config(make_checkpoint(tmp_path, "llama")), dtype=torch.bfloat16)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_loaded_model_is_whole(tmp_path: Path) -> None:
    model = load_model(make_checkpoint(tmp_path, "gemma3"), dtype=torch.bfloat16)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
