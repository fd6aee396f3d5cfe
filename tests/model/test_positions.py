"""Rotary scalings and ALiBi slopes: the angles of `transformers`, and exact where it rounds."""

import json
import math
from pathlib import Path

import pytest
import torch

from polyserve.model.config import RopeScaling
from polyserve.model.families import read_config
from polyserve.model.positions import RotaryTable, alibi_slopes
from polyserve.model.weights.load import load_model
from support.checkpoints import make_checkpoint, save, tiny_model
from support.logits import packed_logits, random_ids, reference_logits

BASE = {"rope_theta": 5000.0}
SCALINGS: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn with every field": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
        "truncate": False,
    },
    "yarn with a given magnitude": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
def test_llama_agrees_with_transformers_for_each_scaling(name: str, tmp_path: Path) -> None:
    reference = tiny_model("llama", config={"rope_parameters": BASE | SCALINGS[name]})
    path = save(reference, tmp_path, family="llama")
    sequences = random_ids(100)
    model = load_model(
        path, dtype=torch.float32, max_model_len=128
    )  # within the trained length: dynamic changes nothing
    assert (packed_logits(model, sequences)[0] - reference_logits(reference, sequences)[0]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["linear", "yarn", "llama3"])
def test_gguf_keeps_a_llamas_scaling(name: str, tmp_path: Path) -> None:
    reference = tiny_model("llama", config={"rope_parameters": BASE | SCALINGS[name]})
    path = save(reference, tmp_path, "gguf-f32", family="llama")
    sequences = random_ids(100)
    got = packed_logits(load_model(path, dtype=torch.float32), sequences)[0]
    assert (got - reference_logits(reference, sequences)[0]).abs().max() < 1e-4


def test_gguf_scales_only_those_layers_of_gemma3_that_see_everything(tmp_path: Path) -> None:
    rope = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
    reference = tiny_model("gemma3", config={"rope_parameters": rope})
    path = save(reference, tmp_path, "gguf-f32", family="gemma3")
    sequences = random_ids(100)
    got = packed_logits(load_model(path, dtype=torch.float32), sequences)[0]
    assert (got - reference_logits(reference, sequences)[0]).abs().max() < 1e-4


def test_dynamic_scaling_is_that_of_the_longest_sequence_served(tmp_path: Path) -> None:
    reference = tiny_model("llama", config={"rope_parameters": BASE | SCALINGS["dynamic"]})  # trained length 128
    path = save(reference, tmp_path, family="llama")
    sequences = random_ids(200)
    model = load_model(path, dtype=torch.float32, max_model_len=200)
    assert (packed_logits(model, sequences)[0] - reference_logits(reference, sequences)[0]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["linear", "dynamic", "yarn", "llama3"])
def test_both_spellings_of_rotary_settings_mean_the_same(name: str, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama", config={"rope_parameters": BASE | SCALINGS[name]})
    new = read_config(path)
    config = json.loads((path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = rope
    (path / "config.json").write_text(json.dumps(config))
    assert new.rope_scalings[0] is not None
    assert read_config(path) == new


def test_both_spellings_of_gemma3_mean_the_same(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "gemma3")
    new = read_config(path)
    config = json.loads((path / "config.json").read_text())
    for name in ("rope_parameters", "layer_types"):
        del config[name]
    config |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "sliding_window_pattern": 2}
    (path / "config.json").write_text(json.dumps(config))
    assert new.rope_bases == (1e4, 1e6, 1e4)
    assert read_config(path) == new


def test_a_scaled_model_is_as_long_as_its_scaling_makes_it(tmp_path: Path) -> None:
    lengths = {}
    for name in ("default", "linear", "dynamic", "yarn", "llama3"):
        lengths[name] = read_config(
            make_checkpoint(tmp_path / name, "llama", config={"rope_parameters": BASE | SCALINGS[name]})
        ).max_len
    assert lengths == {"default": 128, "linear": 512, "dynamic": 256, "yarn": 128, "llama3": 128}


def test_angles_are_exact_at_far_positions() -> None:
    table = RotaryTable(1e6, None, size=64, scale=1.0, max_len=100_000)
    cos, sin = table(torch.tensor([99_999]))
    for i in (0, 1, 7, 31):
        angle = 99_999 * 1e6 ** (-2 * i / 64)
        assert cos[0, i] == torch.tensor(math.cos(angle), dtype=torch.float32)
        assert sin[0, i] == torch.tensor(math.sin(angle), dtype=torch.float32)


def test_a_rotary_scale_of_zero_turns_nothing() -> None:
    scaling = RopeScaling(kind="linear", factor=2.0)
    cos, sin = RotaryTable(1e4, scaling, size=8, scale=0.0, max_len=10)(torch.arange(10))
    assert cos.eq(1).all()
    assert sin.eq(0).all()


def test_layers_with_the_same_angles_share_one_table(tmp_path: Path) -> None:
    model = load_model(make_checkpoint(tmp_path, "gemma3"), dtype=torch.float32)
    assert len(model.rotary_tables) == 2


def test_alibi_slopes_are_powers_of_two_for_a_power_of_two_of_heads() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]


def test_alibi_slopes_of_other_head_counts_interleave_the_next_power_of_two() -> None:
    assert alibi_slopes(6).tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]


def test_an_alibi_scale_multiplies_the_slopes() -> None:
    assert alibi_slopes(2, scale=0.5).tolist() == [0.5 * 2.0**-4, 0.5 * 2.0**-8]
