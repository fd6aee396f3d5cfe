"""Checkpoints as they are found: PolyLM's two layouts, junk buffers, copies of the head, and every kind of damage."""

import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyserve.errors import ModelLoadError
from polyserve.model.decoder import Decoder
from polyserve.model.weights import gguf as gguf_source
from polyserve.model.weights import source
from polyserve.model.weights.load import load_model
from support.checkpoints import Family, make_checkpoint, save, tiny_model
from support.logits import packed_logits, random_ids, reference_logits

State = dict[str, Tensor]


def rewrite(folder: Path, change: Callable[[State], None]) -> Path:
    """Change the tensors of a safetensors checkpoint."""
    state = load_file(folder / "model.safetensors")
    change(state)
    contiguous = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(path: Path, *, max_model_len: int | None = None) -> Decoder:
    return load_model(path, dtype=torch.float32, max_model_len=max_model_len)


def message_of(path: Path, *, max_model_len: int | None = None) -> str:
    """The one line that loading fails with."""
    with pytest.raises(ModelLoadError) as error:
        load(path, max_model_len=max_model_len)
    assert "\n" not in error.value.message
    return error.value.message


def to_linear_layout(state: State) -> None:
    for name in state:
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            state[name] = state[name].t()


def add_masks(state: State) -> None:
    for layer in range(3):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)


def add_head(state: State) -> None:
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()


def drop_prefix(state: State) -> None:
    for name in list(state):
        state[name.removeprefix("transformer.")] = state.pop(name)


@pytest.mark.parametrize("mlp_size", [160, 96])  # 96: all matrices of the MLP are square, and only c_attn tells
@pytest.mark.parametrize("change", [to_linear_layout, add_masks, add_head, drop_prefix])
def test_polylm_loads_as_it_was_published(change: Callable[[State], None], mlp_size: int, tmp_path: Path) -> None:
    reference = tiny_model("polylm", config={"n_inner": mlp_size})
    path = rewrite(save(reference, tmp_path, family="polylm"), change)
    sequences = random_ids(30)
    got = packed_logits(load(path), sequences)[0]
    assert (got - reference_logits(reference, sequences)[0]).abs().max() < 1e-4


def test_rotary_frequencies_in_old_llama_files_are_skipped(tmp_path: Path) -> None:
    def add_frequencies(state: State) -> None:
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)

    load(rewrite(make_checkpoint(tmp_path, "llama"), add_frequencies))


@pytest.mark.parametrize("format", ["safetensors-sharded", "bin", "gguf-q8_0", "gguf-f16"])
def test_a_tensor_of_many_blocks_is_the_same_tensor(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_checkpoint(tmp_path, "gpt2", format=format)
    whole = load(path).state_dict()
    monkeypatch.setattr(source, "BLOCK_BYTES", 2_000)
    monkeypatch.setattr(source, "RELEASE_BYTES", 30_000)
    monkeypatch.setattr(gguf_source, "ELEMENTS_AT_A_TIME", 300)
    monkeypatch.setattr(gguf_source, "ELEMENTS_IN_A_BLOCK", 1_000)
    for name, tensor in load(path).state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    name = "transformer.wpe.weight"
    path = rewrite(make_checkpoint(tmp_path, "gpt2"), lambda state: state.update({"wpe.weight": state[name].clone()}))
    assert f"tensors {name} and wpe.weight are the same one" in message_of(path)


def test_a_copy_of_the_head_that_differs_is_refused(tmp_path: Path) -> None:
    def add_other_head(state: State) -> None:
        add_head(state)
        state["lm_head.weight"][-1, -1] += 1

    path = rewrite(make_checkpoint(tmp_path, "gpt2"), add_other_head)
    assert "lm_head.weight differs from the word embedding" in message_of(path)


def test_bf16_and_fp16_files_load_into_any_dtype(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama")
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        rewrite(path, lambda state, dtype=dtype: state.update({name: x.to(dtype) for name, x in state.items()}))
        assert load(path).head_weight.dtype == torch.float32


def test_norm_weights_stay_in_fp32(tmp_path: Path) -> None:
    model = load_model(make_checkpoint(tmp_path, "gemma3"), dtype=torch.bfloat16)
    assert model.norm.weight.dtype == torch.float32
    assert model.head_weight.dtype == torch.bfloat16


def test_a_length_beyond_the_models_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "polylm")
    assert load(path, max_model_len=64).max_model_len == 64
    assert "max_model_len must be from 1 to the model's 128, got 129" in message_of(path, max_model_len=129)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    path = rewrite(
        make_checkpoint(tmp_path, "llama"), lambda state: state.pop("model.layers.1.self_attn.k_proj.weight")
    )
    assert "1 missing tensor: layers.1.self_attn.k_proj.weight" in message_of(path)


def test_unknown_tensors_are_named(tmp_path: Path) -> None:
    path = rewrite(make_checkpoint(tmp_path, "llama"), lambda state: state.update(score=torch.ones(2)))
    assert "1 unknown tensor: score" in message_of(path)


def test_biases_that_the_config_does_not_mention_are_unknown_tensors(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    path = rewrite(make_checkpoint(tmp_path, "llama"), lambda state: state.update({name: torch.ones(192)}))
    assert f"1 unknown tensor: {name}" in message_of(path)


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    def drop_layer(state: State) -> None:
        for name in [name for name in state if ".h.1." in name]:
            del state[name]

    message = message_of(rewrite(make_checkpoint(tmp_path, "gpt2"), drop_layer))
    assert "12 missing tensors: h.1.attn.c_attn.weight, " in message
    assert message.endswith("and 7 more")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt2", "transformer.wpe.weight"),
        ("llama", "model.norm.weight"),
        ("bloom", "transformer.h.0.mlp.dense_h_to_4h.bias"),
    ],
)
def test_a_tensor_of_another_shape_is_named(family: Family, name: str, tmp_path: Path) -> None:
    path = rewrite(make_checkpoint(tmp_path, family), lambda state: state.update({name: state[name][:-1]}))
    assert f"tensor {name} must have shape" in message_of(path)


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    path = rewrite(make_checkpoint(tmp_path, "llama"), lambda state: state.update({name: state[name].to(torch.int8)}))
    assert f"tensor {name} is int8; only float tensors can be loaded" in message_of(path)


def test_quantised_tensors_in_bin_files_are_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama", format="bin")
    state = torch.load(path / "pytorch_model.bin")
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.int8)
    torch.save(state, path / "pytorch_model.bin")
    assert "tensor model.norm.weight is int8" in message_of(path)


@pytest.mark.parametrize("format", ["safetensors", "bin", "gguf-q8_0"])
@pytest.mark.parametrize("keep", [0, 7, 100, 5_000, 0.5, -1])
def test_a_truncated_file_is_refused(format: str, keep: float, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama", format=format)
    files = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin", "gguf-q8_0": "model.gguf"}
    file = tmp_path / files[format]
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    assert str(file) in message_of(path)


@pytest.mark.parametrize("format", ["safetensors", "bin", "gguf-f32"])
def test_files_of_noise_are_refused(format: str, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama", format=format)
    for file in tmp_path.iterdir():
        if file.suffix in (".safetensors", ".bin", ".gguf"):
            file.write_bytes(np.random.default_rng(0).bytes(10_000))
            assert str(file) in message_of(path)


def test_a_flipped_bit_gives_a_model_or_an_error_of_its_own(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama", format="gguf-f32")
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(0)
    for place in random.integers(0, 12_000, 60):  # the metadata and the index
        damaged = content.copy()
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with suppress(ModelLoadError):
            load(path, max_model_len=16)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, (str(Path(__file__).with_name("never_written")), "w"))


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama", format="bin")
    torch.save({"model.norm.weight": Trap()}, path / "pytorch_model.bin")
    assert "holds more than tensors" in message_of(path)
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "pytorch_model.bin" in message_of(path)
    assert not Path(__file__).with_name("never_written").exists()


def test_code_in_a_model_folder_is_never_imported(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "polylm")
    (path / "modeling_polylm.py").write_text("raise SystemExit('imported')")
    load(path)


@pytest.mark.parametrize("format", ["safetensors-sharded", "bin-sharded"])
class TestShards:
    def index(self, folder: Path) -> tuple[Path, dict[str, str]]:
        path = next(folder.glob("*.index.json"))
        return path, json.loads(path.read_text())["weight_map"]

    def test_a_missing_shard_is_named(self, format: str, tmp_path: Path) -> None:
        path = make_checkpoint(tmp_path, "llama", format=format)
        _, shards = self.index(path)
        lost = next(iter(shards.values()))
        (path / lost).unlink()
        assert f"{lost} is missing" in message_of(path)

    def test_a_shard_outside_the_folder_is_refused(self, format: str, tmp_path: Path) -> None:
        path = make_checkpoint(tmp_path / "model", "llama", format=format)
        file, shards = self.index(path)
        name = next(iter(shards))
        file.write_text(json.dumps({"weight_map": shards | {name: f"../{shards[name]}"}}))
        assert "is not a file of this folder" in message_of(path)

    def test_an_index_without_a_map_is_refused(self, format: str, tmp_path: Path) -> None:
        path = make_checkpoint(tmp_path, "llama", format=format)
        file, _ = self.index(path)
        for damaged in ("{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map"'):
            file.write_text(damaged)
            assert str(file) in message_of(path)

    def test_a_tensor_that_is_in_two_shards_is_refused(self, format: str, tmp_path: Path) -> None:
        path = make_checkpoint(tmp_path, "llama", format=format)
        file, shards = self.index(path)
        first = next(iter(shards.values()))
        suffix = Path(first).suffix
        (path / f"copy{suffix}").write_bytes((path / first).read_bytes())
        file.write_text(json.dumps({"weight_map": shards | {"more": f"copy{suffix}"}}))
        assert "is also in" in message_of(path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama")
    (path / "model.safetensors").unlink()
    assert "has no model.safetensors or pytorch_model.bin, nor an index of shards" in message_of(path)


def test_a_gguf_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "architecture 'mamba' is not supported" in message_of(tmp_path / "model.gguf")
