"""`polyserve train`: what is wrong is one line before anything is computed or written; a signal costs nothing."""

import json
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polyserve.cli.main import main
from polyserve_training.config import TokenizeOptions, TokenizerOptions
from polyserve_training.data.tokenize import tokenize
from polyserve_training.pretrain import train
from polyserve_training.recipe import read_recipe
from polyserve_training.run_log import RunLog, read_log
from polyserve_training.tokenizer import train_tokenizer
from polyserve_training.trainer import Trainer
from polyserve_training.trainer import token_losses as losses
from support.checkpoints import make_checkpoint
from support.training_runs import write_recipe

DONE = re.compile(r"done: weights and optimiser have SHA-256 ([0-9a-f]{64})\n")


@pytest.fixture
def recipe(tmp_path, tokenizer_folder, data_folder) -> Path:
    return write_recipe(tmp_path, tokenizer=tokenizer_folder, data=data_folder)


def trained(capsys, *arguments: object) -> str:
    assert main(["train", *map(str, arguments)]) == 0
    return DONE.fullmatch(capsys.readouterr().out)[1]


def refused(capsys, *arguments: object) -> str:
    assert main(["train", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return line


def test_a_run_logs_a_line_of_json_for_each_step(recipe, capsys):
    trained(capsys, recipe, "compute.peak_tflops=0.5")
    lines = read_log(recipe.parent / "run")
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["stage"] for line in lines] == ["base"] * 5 + ["more"] * 4
    for line in lines:
        assert line["mfu"] == pytest.approx(line["tflops"] / 0.5)
        assert 0 < line["tokens"] <= 4 * 48
        assert line["skipped"] is False


def test_check_shows_the_plan_and_computes_nothing(recipe, capsys):
    assert main(["train", str(recipe), "--check"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    shares = {(stage, stream): float(share.rstrip("%")) for stage, stream, share, _ in rows[1:]}
    assert shares["base", "texts/en"] == pytest.approx(70, abs=100 / 128)
    assert shares["more", "texts/en"] == pytest.approx(40, abs=100 / 128)
    assert sum(share for (stage, _), share in shares.items() if stage == "more") == pytest.approx(100, abs=0.1)
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint_and_the_same_command_goes_on(number, recipe, capsys, monkeypatch):
    whole = trained(capsys, recipe, f"run={recipe.parent / 'whole'}")
    step = Trainer.step

    def with_a_signal(self, number_of_step, parts):
        if number_of_step == 2:
            os.kill(os.getpid(), number)
        return step(self, number_of_step, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", with_a_signal)
        assert main(["train", str(recipe)]) == 130
    saved = sorted(path.name for path in (recipe.parent / "run/checkpoints").iterdir())
    assert saved == ["step-00000002", "step-00000003"]
    capsys.readouterr()
    assert trained(capsys, recipe) == whole


def test_training_may_be_another_thread_than_the_main_one(recipe):
    with ThreadPoolExecutor(1) as pool:
        sha256 = pool.submit(train, read_recipe(recipe)).result()
    assert re.fullmatch("[0-9a-f]{64}", sha256)


def test_a_step_that_stands_out_is_skipped_and_its_samples_are_logged(recipe, capsys, monkeypatch):
    step = Trainer.step

    def with_a_bad_batch(self, number, parts):
        if number == 6:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("polyserve_training.trainer.token_losses", lambda *a, **k: losses(*a, **k) * 1000)
                return step(self, number, parts)
        return step(self, number, parts)

    monkeypatch.setattr(Trainer, "step", with_a_bad_batch)
    trained(capsys, recipe)
    skipped = [line for line in read_log(recipe.parent / "run") if line["skipped"]]
    assert [line["step"] for line in skipped] == [7]
    assert len(skipped[0]["samples"]) == 4
    assert all(re.fullmatch(r"texts/[a-z]{2}:\d+:\d+", sample) for sample in skipped[0]["samples"])


def test_validation_is_by_language_in_bits_per_byte(recipe, data_folder, capsys):
    trained(capsys, recipe, f"validation={{sources: {{held: {data_folder}}}, every: 4, rows: 2}}")
    found = [line for line in read_log(recipe.parent / "run") if "validation" in line]
    assert [line["step"] for line in found] == [4, 8, 9]
    first, last = found[0]["validation"]["held/en"], found[-1]["validation"]["held/en"]
    assert last["loss"] < first["loss"]
    index = json.loads((data_folder / "index.json").read_text())["streams"]["en"]
    per_byte = last["loss"] / 0.6931471805599453 * index["num_tokens"] / index["num_bytes"]
    assert last["bits_per_byte"] == pytest.approx(per_byte)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama"])
def test_every_family_can_be_made_new(family, recipe, capsys):
    trained(capsys, recipe, f"model.family={family}")


@pytest.mark.parametrize("family", ["polylm", "llama", "gemma3"])
def test_a_checkpoint_can_be_gone_on_with(family, recipe, tmp_path, capsys, texts_folder):
    folder = make_checkpoint(tmp_path / "start", family)
    tokenize([texts_folder], folder, tmp_path / "tokens", TokenizeOptions())
    trained(
        capsys, recipe, f"model={{path: {folder}}}", f"tokenizer={folder}", f"data.sources.texts={tmp_path / 'tokens'}"
    )
    losses = [line["loss"] for line in read_log(tmp_path / "run")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.momentum=1", "unknown key optimizer.momentum"),
        ("stages.0.mixture.0.streams=['*/xx']", "no data for */xx in stage base; there is texts/ar"),
        ("stages.0.mixture=[{}, {}]", "*/* in stage base: all of its streams are earlier groups'"),
        ("block=8", "has less than one row in a block of 8 in stage base: raise block to"),
        ("data.sources.texts=nowhere", "nowhere/index.json: cannot be read"),
        ("model.vocab_size=500", "model: its vocabulary of 500 is too small for the tokenizer's 600 ids"),
        ("model.max_len=32", "batch.context: 48 is more than the model's 32 positions"),
        ("model.num_heads=3", "hidden_size 32 must be a multiple of num_heads 3"),
        ("compute.backend=tpu", "compute.backend: use_backend names backend 'tpu'; there is"),
        ("tokenizer=nowhere", "nowhere: there is no such folder or file"),
        ("model={path: nowhere}", "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_written(override, message, recipe, capsys):
    assert message in refused(capsys, recipe, override)
    assert not (recipe.parent / "run").exists()


def test_a_shard_that_changed_is_named(recipe, data_folder, capsys):
    shutil.copytree(data_folder, recipe.parent / "changed")
    path = recipe.parent / "changed/de-00000.tokens"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    line = refused(capsys, recipe, f"data.sources.texts={path.parent}")
    assert line.startswith(f"polyserve: {path}: its fingerprint has changed")


def test_data_of_another_tokenizer_is_named(recipe, texts_folder, data_folder, tmp_path, capsys):
    train_tokenizer([texts_folder], tmp_path / "other", TokenizerOptions(vocab_size=590, threads=1))
    capsys.readouterr()
    line = refused(capsys, recipe, f"tokenizer={tmp_path / 'other'}")
    assert line == f"polyserve: {data_folder}: was encoded with another tokenizer than the recipe's"


def test_a_disk_that_is_full_while_logging_is_one_line_and_the_same_command_goes_on(recipe, capsys, monkeypatch):
    whole = trained(capsys, recipe, f"run={recipe.parent / 'whole'}")
    write = RunLog.write

    def until_full(self, values):
        if values["step"] == 6:
            raise OSError(28, "No space left on device")
        write(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", until_full)
        assert main(["train", str(recipe)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"polyserve: {recipe.parent / 'run'}: No space left on device"
    assert trained(capsys, recipe) == whole


def test_a_tokenizer_that_cannot_be_written_is_one_line(texts_folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["tokenizer", "train", str(texts_folder), "-o", str(tmp_path / "file/out"), "--vocab-size", "400"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"polyserve: {tmp_path / 'file/out'}: cannot be written: Not a directory"
