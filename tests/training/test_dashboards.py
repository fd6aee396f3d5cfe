"""TensorBoard and Weights & Biases get a run's numbers where the recipe names them, and are missed by name."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polyserve.cli.main import main
from polyserve_training.dashboards import numbers
from polyserve_training.run_log import read_log
from support.training_runs import write_recipe

READ_TENSORBOARD = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print(json.dumps({name: [(x.step, x.value) for x in events.Scalars(name)] for name in events.Tags()["scalars"]}))
"""
COMMAND = "import sys\nfrom polyserve.cli.main import main\nsys.exit(main())"


@pytest.fixture
def recipe(tmp_path, tokenizer_folder, data_folder) -> Path:
    return write_recipe(tmp_path, tokenizer=tokenizer_folder, data=data_folder)


def python(program: str, *arguments: object, **variables: str) -> str:
    """Run a program in a process of its own: these packages warn of what is old in others."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_tensorboard_gets_every_step_once_also_of_a_run_that_goes_on(recipe):
    run = recipe.parent / "run"
    python(COMMAND, "train", recipe, "log=[tensorboard]", "checkpoints.every=4")
    shutil.rmtree(run / "checkpoints/step-00000009")
    python(COMMAND, "train", recipe, "log=[tensorboard]")
    found = json.loads(python(READ_TENSORBOARD, run / "tensorboard"))
    assert [step for step, _ in found["loss"]] == list(range(1, 10))
    assert [value for _, value in found["loss"]] == pytest.approx([line["loss"] for line in read_log(run)])
    assert {"gradient_norm", "tokens_per_s", "rows/en"} <= set(found)


def test_weights_and_biases_get_the_numbers_without_a_network(recipe):
    python(COMMAND, "train", recipe, "log=[wandb]", WANDB_MODE="offline", WANDB_SILENT="true")
    [kept] = recipe.parent.glob("run/wandb/offline-run-*/run-*.wandb")
    assert kept.stem == "run-" + (recipe.parent / "run/wandb-id").read_text()
    content = kept.read_bytes()
    assert all(name in content for name in (b"gradient_norm", b"rows/en", b"init_std"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_one_that_is_not_installed_is_missed_by_name_before_anything_is_written(name, recipe, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else find(module))
    assert main(["train", str(recipe), f"log=[{name}]"]) == 2
    message = f"log: {name} needs a package that is not installed: pip install 'polyserve-lm[{name}]'"
    assert message in capsys.readouterr().err
    assert not (recipe.parent / "run").exists()


def test_numbers_have_the_names_of_where_they_stand():
    line = {"step": 3, "stage": "base", "skipped": False, "mfu": None, "validation": {"texts/de": {"loss": 1.5}}}
    assert dict(numbers(line)) == {"step": 3.0, "skipped": 0.0, "validation/texts/de/loss": 1.5}
