"""A model that is loaded into packed weights, as it is served on a CPU, says what the same model says in tensors."""

from pathlib import Path

import pytest
import torch

from polyserve.model.weights.fill import Packing
from polyserve.model.weights.load import load_model
from polyserve_kernels import ops
from polyserve_kernels.types import GGUF_FORMATS, PackedWeight
from support.checkpoints import FAMILIES, Family, make_checkpoint, save, tiny_model
from support.logits import disagreements, packed_logits, random_ids, reference_logits

pytestmark = pytest.mark.skipif(not ops.packs_weights(torch.device("cpu")), reason="the C++ kernels are not built")

FP32_ERROR = 1e-4  # as in test_parity: logits have a standard deviation of 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_floats_give_the_bits_of_the_tensors_they_were_packed_from(
    family: Family, dtype: torch.dtype, tmp_path: Path
) -> None:
    path, sequences = make_checkpoint(tmp_path, family), random_ids(40, 1, 23)
    plain = packed_logits(load_model(path, dtype=dtype), sequences)
    packed = packed_logits(load_model(path, dtype=dtype, packing=Packing()), sequences)
    assert torch.equal(torch.cat(packed), torch.cat(plain))


@pytest.mark.parametrize("format", ["gguf-q8_0", "gguf-q4_0", "gguf-f16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_blocks_of_gguf_give_the_logits_of_transformers(family: Family, format: str, tmp_path: Path) -> None:
    reference, sequences = tiny_model(family), random_ids(40, 1, 23)
    path = save(reference, tmp_path, format, family=family)
    packed = packed_logits(load_model(path, dtype=torch.float32, packing=Packing()), sequences)
    for ours, theirs in zip(packed, reference_logits(reference, sequences), strict=True):
        assert (ours - theirs).abs().max() < FP32_ERROR
        assert disagreements(ours, theirs) == []


@pytest.mark.parametrize("keeps", [True, False])
def test_integers_are_kept_as_a_gguf_file_stores_them_unless_floats_are_asked_for(keeps: bool, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama", format="gguf-q4_0")
    model = load_model(path, dtype=torch.bfloat16, packing=Packing(keep_integers=keeps))
    weight = model.layers[0].get_submodule("attention.qkv").weight
    assert isinstance(weight, PackedWeight)
    assert [part.form.gguf_type for part in weight.parts] == ([GGUF_FORMATS["Q4_0"].gguf_type] if keeps else [None])
    assert weight.dtype == (None if keeps else torch.bfloat16)
