"""A checkpoint that `polyserve quantize` wrote, and one that is quantised while it is loaded, are the same model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polyserve.cli.main import main
from polyserve.config import EngineConfig
from polyserve.engine.engine import Engine
from polyserve.errors import ModelLoadError
from polyserve.model.weights import quantize
from polyserve.model.weights.fill import Packing
from polyserve.model.weights.load import load_model
from polyserve.model.weights.quantize import quantize_checkpoint
from polyserve.quantization.schemes import Scheme
from polyserve_kernels.cpu import library
from support.checkpoints import FAMILIES, Family, make_checkpoint
from support.logits import packed_logits, random_ids

INT4 = Scheme("int4", 16)
SEQUENCES = random_ids(40, 1, 23)
FP32_ERROR = 1e-4  # as in test_parity
needs_library = pytest.mark.skipif(not library.runs_here(), reason="the C++ kernels are not built")


def logits(path: Path, packing: Packing | None) -> torch.Tensor:
    return torch.cat(packed_logits(load_model(path, dtype=torch.float32, packing=packing), SEQUENCES))


def quantized(tmp_path: Path, family: Family = "llama", scheme: Scheme = INT4) -> tuple[Path, Path]:
    """The folder that was quantised, and what came of it."""
    folder = tmp_path / "original"
    folder.mkdir()
    make_checkpoint(folder, family)
    quantize_checkpoint(folder, tmp_path / "quantized", scheme)
    return folder, tmp_path / "quantized"


@needs_library
@pytest.mark.parametrize("scheme", [Scheme("int8"), INT4], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_quantising_beforehand_and_while_loading_give_the_same_bits(
    family: Family, scheme: Scheme, tmp_path: Path
) -> None:
    folder, target = quantized(tmp_path, family, scheme)
    beforehand = logits(target, Packing())
    assert torch.equal(beforehand, logits(folder, Packing(quantize=scheme.quantize)))
    assert not torch.equal(beforehand, logits(folder, Packing()))


@needs_library
@pytest.mark.parametrize("family", FAMILIES)
def test_where_integers_are_not_multiplied_their_numbers_are(family: Family, tmp_path: Path) -> None:
    _, target = quantized(tmp_path, family)
    assert (logits(target, None) - logits(target, Packing())).abs().max() < FP32_ERROR


def test_shards_have_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = quantized(tmp_path)
    monkeypatch.setattr(quantize, "SHARD_BYTES", 20_000)
    quantize_checkpoint(tmp_path / "original", tmp_path / "sharded", INT4)
    weight_map = json.loads((tmp_path / "sharded/model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) > 2
    assert torch.equal(logits(tmp_path / "sharded", None), logits(whole, None))


def test_its_other_files_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder, target = quantized(tmp_path)
    beside = {path.name for path in folder.iterdir()} - {"config.json", "model.safetensors"}
    assert all((target / name).read_bytes() == (folder / name).read_bytes() for name in beside)
    config = json.loads((target / "config.json").read_text())
    assert config.pop("quantization_config") == {"quant_method": "polyserve", "scheme": "int4", "group_size": 16}
    assert config == json.loads((folder / "config.json").read_text())


def test_nothing_appears_when_a_matrix_cannot_be_quantised(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="channels are not a multiple of groups of 128"):
        quantized(tmp_path, scheme=Scheme("int4", 128))
    assert {path.name for path in tmp_path.iterdir()} == {"original"}


def test_what_is_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    _, target = quantized(tmp_path)
    with pytest.raises(ModelLoadError, match="quantised already"):
        quantize_checkpoint(target, tmp_path / "again", Scheme("int8"))


@pytest.mark.parametrize("damage", ["scales", "minimums", "dtype"])
def test_scales_that_do_not_fit_are_an_error_of_one_line(damage: str, tmp_path: Path) -> None:
    _, target = quantized(tmp_path)
    state = load_file(target / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    if damage == "dtype":
        state[name] = state[name].view(torch.int8)
    else:
        state[f"{name}.{damage}"] = state[f"{name}.{damage}"][:, :-1].contiguous()
    save_file(state, target / "model.safetensors")
    with pytest.raises(ModelLoadError) as error:
        load_model(target, dtype=torch.float32)
    assert name in error.value.message
    assert "\n" not in error.value.message


def test_another_quantisation_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelLoadError, match="quantization_config of 'gptq' is not supported"):
        load_model(folder, dtype=torch.float32)


@needs_library
def test_an_engine_quantises_while_it_loads_and_says_so(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    config = {"model": str(folder), "threads": 1, "quantization": "int4"}
    engine = Engine.from_config(EngineConfig(**config, quantization_group=16))
    assert engine.numerics_id.endswith("-bfloat16-w_int4_g16")
    with pytest.raises(ModelLoadError, match="quantization_group must be one of 16, 32"):
        Engine.from_config(EngineConfig(**config, quantization_group=5))


def test_a_backend_that_multiplies_no_integers_refuses_to_quantise(tmp_path: Path) -> None:
    config = EngineConfig(model=str(make_checkpoint(tmp_path, "llama")), quantization="int8", backend="reference")
    try:
        with pytest.raises(ModelLoadError, match="quantization int8 needs backend cpu, and reference answers here"):
            Engine.from_config(config)
    finally:
        from polyserve_kernels import dispatch

        dispatch.use_backend(None)


def test_the_command_writes_a_folder_and_says_how_large_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "original").mkdir()
    folder = make_checkpoint(tmp_path / "original", "gpt2")
    assert main(["quantize", str(folder), str(tmp_path / "out"), "--scheme", "int8"]) == 0
    assert "out: int8, 0.00 GB" in capsys.readouterr().out
    assert main(["quantize", str(folder), str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
