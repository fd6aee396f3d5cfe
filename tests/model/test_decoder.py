"""What holds for every decoder: served rows have the bits of packed rows, and lengths have a limit."""

from pathlib import Path

import pytest
import torch

from polyserve.model.weights.load import load_model
from support.checkpoints import FAMILIES, Family, make_checkpoint
from support.logits import packed_logits, random_ids, served_logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_served_in_chunks_have_the_bits_of_packed_rows(family: Family, dtype: torch.dtype, tmp_path: Path) -> None:
    model = load_model(make_checkpoint(tmp_path, family), dtype=dtype)
    long, short = random_ids(41, 5)
    packed = packed_logits(model, [short, long])[1]
    for chunks in ([41], [17, 1, 1, 22], [40, 1]):
        assert torch.equal(served_logits(model, long, chunks=chunks), packed)


def test_a_model_has_no_memory_until_it_is_loaded(tmp_path: Path) -> None:
    from polyserve.model.decoder import Decoder
    from polyserve.model.families import read_config

    model = Decoder(read_config(make_checkpoint(tmp_path, "llama")), dtype=torch.bfloat16)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_loaded_model_is_whole(tmp_path: Path) -> None:
    model = load_model(make_checkpoint(tmp_path, "gemma3"), dtype=torch.bfloat16)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
