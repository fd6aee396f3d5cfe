"""What a checkpoint says about itself becomes a ModelConfig, or an error that names what is not supported."""

import json
import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from polyserve.errors import ModelLoadError
from polyserve.gguf import GGUFFile, GGUFTensor
from polyserve.model.config import ModelConfig
from polyserve.model.families import config_from_gguf, read_config

GPT2: dict[str, object] = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 128,
    "vocab_size": 60_000,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
BLOOM: dict[str, object] = {
    "model_type": "bloom",
    "hidden_size": 64,
    "n_head": 4,
    "n_layer": 2,
    "vocab_size": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA3: dict[str, object] = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
    "head_dim": 32,
    "sliding_window": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def config_of(folder: Path, config: dict[str, object], generation: dict[str, object] | None = None) -> ModelConfig:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_config(folder)


POLYLM_MARKS: dict[str, dict[str, object]] = {
    "vocabulary": {"vocab_size": 256_000},
    "architecture": {"architectures": ["PolyLMHeadModel"]},
    "code": {"auto_map": {"AutoModelForCausalLM": "modeling_polylm.PolyLMHeadModel"}},
}


@pytest.mark.parametrize("mark", POLYLM_MARKS)
def test_polylm_ends_with_token_2_whatever_its_config_says(mark: str, tmp_path: Path) -> None:
    marks = POLYLM_MARKS[mark] | {"eos_token_id": 255_999, "bos_token_id": 255_999}
    config = config_of(tmp_path, GPT2 | marks, generation={"eos_token_id": 255_999})
    assert (config.family, config.eos_ids, config.bos_id) == ("polylm", (2,), None)


def test_gpt2_is_not_polylm(tmp_path: Path) -> None:
    config = config_of(tmp_path, GPT2)
    assert (config.family, config.eos_ids, config.bos_id) == ("gpt2", (50256,), 50256)


def test_ids_that_end_an_answer_are_those_of_both_files(tmp_path: Path) -> None:
    config = config_of(tmp_path, LLAMA | {"eos_token_id": [7, 8]}, generation={"eos_token_id": [8, 9]})
    assert config.eos_ids == (7, 8, 9)


def test_a_config_that_says_null_has_no_end_of_sequence(tmp_path: Path) -> None:
    assert config_of(tmp_path, LLAMA | {"eos_token_id": None}).eos_ids == ()


def test_a_config_that_says_nothing_has_the_usual_end_of_sequence(tmp_path: Path) -> None:
    said = {name: value for name, value in LLAMA.items() if name != "eos_token_id"}
    assert config_of(tmp_path, said).eos_ids == (2,)


def test_llama_without_key_value_heads_shares_none(tmp_path: Path) -> None:
    assert config_of(tmp_path, LLAMA | {"num_key_value_heads": None}).num_kv_heads == 4


def test_gemma3_without_a_pattern_lets_every_sixth_layer_see_everything(tmp_path: Path) -> None:
    config = config_of(tmp_path, GEMMA3 | {"num_hidden_layers": 7})
    assert config.windows == (16, 16, 16, 16, 16, None, 16)


REFUSED: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "type": (
        LLAMA,
        {"model_type": "mamba"},
        "model type 'mamba' is not supported; supported: gpt2, bloom, llama, gemma3_text",
    ),
    "no type": (LLAMA, {"model_type": None}, "model_type is missing"),
    "quantised": (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
    "activation": (LLAMA, {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: silu, swish"),
    "erf gelu": (GPT2, {"activation_function": "gelu"}, "activation_function 'gelu' is not supported"),
    "relu": (GEMMA3, {"hidden_activation": "relu"}, "hidden_activation 'relu'"),
    "layer scale": (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    "reorder": (GPT2, {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
    "cross attention": (GPT2, {"add_cross_attention": True}, "add_cross_attention"),
    "post norm": (
        BLOOM,
        {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm",
    ),
    "both ways": (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "layer types": (GEMMA3, {"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
    "rope type": (LLAMA, {"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
    "rope field": (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 3.0}}, "alpha is not supported"),
    "part of a head": (
        LLAMA,
        {"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    "no factor": (LLAMA, {"rope_scaling": {"type": "linear"}}, "factor is missing"),
    "factor of 0": (LLAMA, {"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a finite number above 0"),
    "rope is text": (LLAMA, {"rope_scaling": "linear"}, "rope_scaling must be an object"),
    "base of 1": (LLAMA, {"rope_theta": 1.0}, "rotary bases must be more than 1"),
    "no width": (LLAMA, {"hidden_size": None}, "hidden_size is missing"),
    "text for a number": (LLAMA, {"hidden_size": "64"}, "hidden_size must be an integer, got '64'"),
    "negative": (LLAMA, {"num_hidden_layers": -1}, "num_hidden_layers must be from 1 to 10000, got -1"),
    "endless layers": (LLAMA, {"num_hidden_layers": 10**9}, "num_hidden_layers must be from 1 to 10000"),
    "endless": (LLAMA, {"rope_scaling": {"type": "linear", "factor": 1e30}}, "the longest sequence must have"),
    "true for a number": (LLAMA, {"vocab_size": True}, "vocab_size must be an integer"),
    "uneven heads": (GPT2, {"n_head": 5}, "hidden size 64 is no multiple of 5 heads"),
    "uneven sharing": (LLAMA, {"num_key_value_heads": 3}, "4 heads cannot share 3 key/value heads"),
    "odd heads": (LLAMA, {"head_dim": 15}, "rotary size 15 must be even"),
    "eos out of range": (LLAMA, {"eos_token_id": 512}, "eos_token_id must hold token ids from 0 to 511, got 512"),
    "infinite epsilon": (LLAMA, {"rms_norm_eps": float("inf")}, "rms_norm_eps must be a finite number above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str, tmp_path: Path) -> None:
    config, change, message = REFUSED[name]
    with pytest.raises(ModelLoadError, match=r"config\.json") as error:
        config_of(tmp_path, config | change)
    assert message in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_damaged_json_is_one_line(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ModelLoadError, match=re.escape(name)) as error:
        read_config(tmp_path)
    assert "\n" not in error.value.message


GGUF_LLAMA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.bos_token_id": 1,
}


def gguf_file(metadata: dict[str, object]) -> GGUFFile:
    words = GGUFTensor("token_embd.weight", (512, 64), gguf.GGMLQuantizationType.F32, np.zeros((512, 256), np.uint8))
    return GGUFFile(Path("model.gguf"), metadata, {words.name: words})


def test_gguf_metadata_says_what_a_config_would() -> None:
    config = config_from_gguf(gguf_file(GGUF_LLAMA))
    assert (config.family, config.num_layers, config.num_kv_heads, config.head_size) == ("llama", 2, 2, 16)
    assert (config.vocab_size, config.max_len, config.eos_ids, config.bos_id) == (512, 128, (2,), 1)
    assert config.tied_head


def test_gguf_ends_of_turn_and_of_message_end_an_answer() -> None:
    ends = {"tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 8}
    assert config_from_gguf(gguf_file(GGUF_LLAMA | ends)).eos_ids == (2, 9, 8)


GGUF_REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "architecture": (
        {"general.architecture": "mamba"},
        "architecture 'mamba' is not supported; supported: gpt2, bloom",
    ),
    "no architecture": ({"general.architecture": None}, "architecture None is not supported"),
    "experts": ({"llama.expert_count": 8}, "expert_count = 8 is not supported"),
    "unknown key": ({"llama.attention.clamp_kqv": 3.0}, "metadata llama.attention.clamp_kqv is not supported"),
    "sizes by layer": (
        {"llama.attention.head_count_kv": np.array([2, 1])},
        "attention.head_count_kv must be an integer",
    ),
    "rope type": ({"llama.rope.scaling.type": "longrope"}, "rope.scaling"),
    "part of a head": ({"llama.rope.dimension_count": 8}, "rope.dimension_count = 8 is not supported; supported: 16"),
    "other value heads": ({"llama.attention.value_length": 8}, "attention.value_length = 8"),
}


@pytest.mark.parametrize("name", GGUF_REFUSED)
def test_gguf_metadata_that_is_not_supported_is_refused_by_name(name: str) -> None:
    change, message = GGUF_REFUSED[name]
    with pytest.raises(ModelLoadError, match=r"model\.gguf") as error:
        config_from_gguf(gguf_file(GGUF_LLAMA | change))
    assert message in error.value.message


def test_reading_a_config_does_not_import_torch() -> None:
    program = "import sys, polyserve.model.families, polyserve.model.weights.resolve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
