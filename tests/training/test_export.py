"""What was trained goes out, and `transformers`, the loader and the server read the very numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from polyserve.cli.main import main
from polyserve.config import EngineConfig
from polyserve.errors import ModelLoadError
from polyserve.llm import LLM
from polyserve.model.weights.load import load_model
from polyserve.sampling_params import SamplingParams
from polyserve.tokenizer.load import load_tokenizer
from polyserve_training import export
from polyserve_training.config import TokenizeOptions
from polyserve_training.data.packing import Packed
from polyserve_training.data.tokenize import tokenize
from polyserve_training.export import convert, load_run
from polyserve_training.pretrain import train
from polyserve_training.trainer import token_losses
from support.checkpoints import FAMILIES, make_checkpoint
from support.logits import packed_logits, random_ids, reference_logits
from support.tolerance import assert_as_good_as_torch
from support.training_runs import small_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer_folder, data_folder) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(small_recipe(folder, tokenizer=tokenizer_folder, data=data_folder))
    return folder / "run"


def assert_same_weights(ours, theirs) -> None:
    theirs = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_what_is_loaded_is_what_was_trained(dtype, run, tmp_path):
    out = convert(str(run), tmp_path / "out", step=None, dtype=dtype)
    trained = load_run(run, dtype=dtype).model
    assert_same_weights(trained, load_model(out, dtype=trained.dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_any_family_comes_back_the_same(family, dtype, tmp_path):
    source = make_checkpoint(tmp_path / "source", family)
    out = convert(str(source), tmp_path / "out", step=None, dtype=dtype)
    torch_dtype = getattr(torch, dtype)
    ours, again = (load_model(folder, dtype=torch_dtype) for folder in (source, out))
    sequences = random_ids(20, 3)
    if family == "gemma3":  # it stores norm weights less 1, which is rounded once more
        for one, other in zip(packed_logits(ours, sequences), packed_logits(again, sequences), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0.05 if dtype == "bfloat16" else 1e-5)
    else:
        assert_same_weights(ours, again)


@pytest.mark.parametrize("family", ["polylm", "gpt2", "bloom", "llama"])
def test_transformers_gives_the_logits_of_what_was_trained(family, tmp_path, tokenizer_folder, data_folder):
    recipe = small_recipe(
        tmp_path, f"model.family={family}", "stages.0.steps=2", "stages.1.steps=1",
        tokenizer=tokenizer_folder, data=data_folder,
    )  # fmt: skip
    train(recipe)
    out = convert(recipe.run, tmp_path / "out", step=None, dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    sequences = random_ids(30, 7, vocab_size=600)
    exact = reference_logits(theirs.double(), sequences)
    eager = reference_logits(theirs.float(), sequences)
    ours = packed_logits(load_run(Path(recipe.run), dtype="float32").model, sequences)
    for mine, plain, truth in zip(ours, eager, exact, strict=True):
        assert_as_good_as_torch(mine, plain, truth.double())


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama", "gemma3"])
def test_a_folder_from_elsewhere_trains_a_step_and_goes_back(family, tmp_path, texts_folder):
    source = make_checkpoint(tmp_path / "source", family)
    tokenize([texts_folder], source, tmp_path / "tokens", TokenizeOptions())
    recipe = small_recipe(
        tmp_path, f"model={{path: {source}}}", "stages=[{name: one, steps: 1}]", "schedule.warmup_steps=0",
        "compute.dtype=float32", tokenizer=source, data=tmp_path / "tokens",
    )  # fmt: skip
    train(recipe)
    out = convert(recipe.run, tmp_path / "out", step=None, dtype="float32")
    before, after = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (source, out))
    sequences = random_ids(30, 7)
    exact = reference_logits(after.double().eval(), sequences)
    eager = reference_logits(after.float(), sequences)
    ours = packed_logits(load_model(out, dtype=torch.float32), sequences)
    untrained = reference_logits(before.eval(), sequences)
    for mine, plain, truth, first in zip(ours, eager, exact, untrained, strict=True):
        assert_as_good_as_torch(mine, plain, truth.double())
        assert (plain - first).abs().max() > 1e-3


def test_large_models_go_out_in_shards(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 20_000)
    out = convert(str(run), tmp_path / "out", step=None, dtype=None)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
    trained = load_run(run).model
    assert_same_weights(trained, load_model(out, dtype=trained.dtype))
    AutoModelForCausalLM.from_pretrained(out)


def test_the_tokenizer_goes_with_it(run, tmp_path, tokenizer_folder):
    out = convert(str(run), tmp_path / "out", step=None, dtype=None)
    text = "Müller 2008 東京\n\n  x"
    ids = load_tokenizer(tokenizer_folder).encode(text)
    assert load_tokenizer(out).encode(text) == ids
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == ids


def test_it_answers_at_once(run, tmp_path):
    out = convert(str(run), tmp_path / "out", step=None, dtype=None)
    [output] = LLM(str(out)).generate(["Die Straßenbahn"], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 4


def test_the_served_model_has_the_trainers_log_probabilities_to_the_bit(run, tmp_path):
    out = convert(str(run), tmp_path / "out", step=None, dtype=None)
    [sequence] = random_ids(48, vocab_size=600)
    scoring = SamplingParams(max_tokens=0, prompt_logprobs=0)
    [output] = LLM(str(out), config=EngineConfig(threads=1, max_num_batched_tokens=13)).generate([sequence], scoring)
    ids, row = np.array(sequence), np.arange(47)
    losses = token_losses(load_run(run).model, Packed(ids[:-1], row, np.array([0, 47], dtype=np.int32), ids[1:]))
    assert [entry.logprob for entry in output.prompt_logprobs[1:]] == (-losses).tolist()


def test_an_earlier_step_can_be_asked_for(run, tmp_path, capsys):
    assert main(["convert", str(run), str(tmp_path / "eight"), "--step", "8"]) == 0
    last = load_run(run).model.head_weight
    assert not torch.equal(load_model(tmp_path / "eight", dtype=torch.bfloat16).head_weight, last)
    assert main(["convert", str(run), str(tmp_path / "three"), "--step", "3"]) == 2
    assert "has no checkpoint of step 3; there is step-00000008, step-00000009" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json", "chat_template.jinja"])
def test_another_tokenizer_or_template_beside_the_model_is_refused(name, run, tmp_path):
    out = convert(str(run), tmp_path / "out", step=None, dtype=None)
    load_tokenizer(out)
    path = out / name
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    with pytest.raises(ModelLoadError, match="the one that the model was trained with"):
        load_tokenizer(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere", "out"], "nowhere"), (["--step", "1", ".", "out"], "has no steps to choose from")],
)
def test_what_cannot_be_converted_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_nothing_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert main(["convert", str(run), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"polyserve: {tmp_path / 'out'}: exists already\n"


def test_the_config_says_what_ends_a_text(run, tmp_path):
    out = convert(str(run), tmp_path / "out", step=None, dtype=None)
    config = json.loads((out / "config.json").read_text())
    assert (config["eos_token_id"], config["dtype"], config["vocab_size"]) == (2, "bfloat16", 600)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2]
