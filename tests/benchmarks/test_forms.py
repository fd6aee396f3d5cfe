"""The forms of a model that engines are given: the same weights in each, what is refused, and what a step costs."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from polyserve.errors import ModelLoadError
from polyserve.gguf import read_gguf
from polyserve.model.families import read_config
from polyserve_benchmarks.compare.cost import kv_bytes, step_bytes, token_flops
from polyserve_benchmarks.compare.export import bf16_folder, gguf_of_16_bits
from polyserve_benchmarks.compare.forms import form_for
from polyserve_benchmarks.compare.models import find, precision_name
from polyserve_benchmarks.compare.plan import SCRIPTS, Run
from polyserve_benchmarks.compare.process import EngineFailed
from support.checkpoints import SIZES, make_checkpoint, save, tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_bf16_folder_of_a_gguf_file_is_the_model_it_was_made_of(tmp_path, family):
    model = tiny_model(family)
    model.load_state_dict({name: weight.bfloat16() for name, weight in model.state_dict().items()})
    bf16_folder(save(model, tmp_path / "model", "gguf-bf16", family=family), tmp_path / "folder")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    assert type(exported) is type(model)
    assert {weight.dtype for weight in load_file(tmp_path / "folder/model.safetensors").values()} == {torch.bfloat16}
    for name, weight in model.state_dict().items():  # a norm of Gemma's is 1 + w in between
        torch.testing.assert_close(exported.state_dict()[name], weight, rtol=2**-8, atol=0, msg=name)
    token_ids = torch.arange(40)[None] % SIZES.vocab_size
    torch.testing.assert_close(exported(token_ids).logits, model(token_ids).logits, rtol=1e-3, atol=1e-3)


def test_a_family_that_has_no_bf16_folder_is_named(tmp_path):
    file = make_checkpoint(tmp_path / "model", "bloom", format="gguf-f16")
    with pytest.raises(ModelLoadError, match=r"Llama and Gemma 3 without rotary scaling, not of bloom$"):
        bf16_folder(file, tmp_path / "folder")


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_a_gguf_of_16_bits_has_the_values_of_the_blocks(tmp_path, kind):
    file = make_checkpoint(tmp_path / "model", "llama", format="gguf-q4_0")
    gguf_of_16_bits(file, tmp_path / "wide.gguf", kind)
    narrow, wide = read_gguf(file), read_gguf(tmp_path / "wide.gguf")
    dtype = torch.bfloat16 if kind == "BF16" else torch.float16
    for name, tensor in narrow.tensors.items():
        assert wide.tensors[name].type.name == (kind if len(tensor.shape) == 2 else "F32")
        before, after = (
            torch.from_numpy(gguf.quants.dequantize(x.data, x.type).copy()) for x in (tensor, wide.tensors[name])
        )
        assert torch.equal(after, before.to(dtype).float() if len(tensor.shape) == 2 else before)
    assert wide.metadata.keys() == narrow.metadata.keys() | {"general.file_type"}
    for key in narrow.metadata.keys() - {"general.file_type"}:
        np.testing.assert_array_equal(wide.metadata[key], narrow.metadata[key], err_msg=key)
    assert precision_name("stored", tmp_path / "wide.gguf") == kind


def test_a_form_is_made_once(tmp_path, cache):
    file = make_checkpoint(tmp_path / "model", "llama", format="gguf-q4_0")
    first = form_for("vllm", "bf16", file).path
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert form_for("vllm", "bf16", file).path == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    assert cache in first.parents


@pytest.mark.parametrize(
    ("engine", "precision", "format", "why"),
    [
        ("llama.cpp", "stored", "safetensors", "it reads GGUF files, and this model is a folder"),
        ("llama.cpp", "int8", "gguf-q4_0", "its quantised types have other blocks than int8: give it a GGUF file"),
        (
            "vllm",
            "stored",
            "gguf-q4_0",
            "its CPU build does not multiply the blocks of .*; --precision bf16 includes it",
        ),
        ("openvino", "bf16", "safetensors", "it reads a GGUF file or a converted model, and this model is a folder"),
        ("openvino", "stored", "gguf-q5_1", "its GGUF reader has no Q5_1$"),
        ("ctranslate2", "int4", "gguf-q4_0", "it does not multiply int4; --precision bf16 or int8 includes it"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(tmp_path, engine, precision, format, why):
    model = make_checkpoint(tmp_path / "model", "llama", format=format)
    with pytest.raises(EngineFailed, match=f"^{why}"):
        form_for(engine, precision, model)


def test_openvino_is_not_given_an_architecture_that_it_does_not_know(tmp_path):
    model = make_checkpoint(tmp_path / "model", "gemma3", format="gguf-q4_0")
    with pytest.raises(EngineFailed, match=r"knows llama, qwen2, qwen3, and this is gemma3$"):
        form_for("openvino", "stored", model)


def test_every_engine_has_forms(tmp_path):
    file = make_checkpoint(tmp_path / "model", "llama", format="gguf-q4_0")
    for engine in SCRIPTS:
        assert form_for(engine, "bf16", file).path.exists()


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_the_words_only_where_they_are_the_head(tmp_path, tied):
    model = tiny_model("llama", config={"tie_word_embeddings": tied})
    folder = save(model, tmp_path, "safetensors", family="llama")
    weights = sum(weight.numel() for weight in model.parameters())
    words = 0 if tied else SIZES.vocab_size * SIZES.hidden_size
    assert step_bytes(folder, "bf16") == 2 * (weights - words)


def test_a_step_of_a_gguf_file_reads_its_blocks(tmp_path):
    file = make_checkpoint(tmp_path, "llama", format="gguf-q4_0", config={"tie_word_embeddings": True})
    assert step_bytes(file, "stored") == sum(tensor.data.nbytes for tensor in read_gguf(file).tensors.values())


def test_positions_are_looked_up(tmp_path):
    model = tiny_model("gpt2")
    folder = save(model, tmp_path, "safetensors", family="gpt2")
    weights = sum(weight.numel() for weight in model.parameters())
    assert step_bytes(folder, "bf16") == 2 * (weights - SIZES.max_len * SIZES.hidden_size)


def test_a_prompt_token_multiplies_every_matrix_of_a_layer(tmp_path):
    model = tiny_model("gpt2")
    folder = save(model, tmp_path, "safetensors", family="gpt2")
    layers = model.transformer.h.parameters()
    assert token_flops(folder) == 2 * sum(weight.numel() for weight in layers if weight.ndim == 2)


def test_keys_and_values_of_the_largest_run_have_room(tmp_path):
    file = make_checkpoint(tmp_path, "llama", format="gguf-f16")
    config = read_config(file)
    one_token = 2 * config.num_layers * config.num_kv_heads * config.head_size * 2
    assert kv_bytes(file, [Run(1, 100, 1), Run(4, 40, 10)]) == int(1.25 * 200 * one_token)


def test_a_shape_is_refused_where_the_disk_has_no_room(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 10**9))
    with pytest.raises(ModelLoadError, match=r"^polylm-1.7b-shape: .* needs 3.8 GB of disk, and 1.0 are free$"):
        find("polylm-1.7b-shape")


def test_a_shape_is_written_once_as_a_checkpoint_that_can_be_read(monkeypatch, cache):
    monkeypatch.setitem(find.__globals__["SHAPES"], "tiny-shape", (2, 32, 2, 512))
    folder = find("tiny-shape")
    config = read_config(folder)
    assert (config.num_layers, config.hidden_size, config.num_heads, config.vocab_size) == (2, 32, 2, 512)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert find("tiny-shape") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert [path.name for path in (cache / "polyserve" / "compare").iterdir()] == ["tiny-shape"]
