"""A run that was killed anywhere and started again is, to the bit, the run that nobody killed."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polyserve.errors import TrainingError
from polyserve_training.checkpoint import Checkpoints, read_meta
from polyserve_training.config import Recipe
from polyserve_training.pretrain import train
from polyserve_training.run_log import read_log
from support.training_runs import small_recipe, write_recipe

TIMES = ("tokens_per_s", "tflops", "memory_mib")
# Python that ends the process, as kill -9 does, at one call of one function
KILLED = """
import importlib, os, signal, sys
from pathlib import Path
module, owner, name, count = sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
place = importlib.import_module(module)
place = getattr(place, owner) if owner else place
function = getattr(place, name)
def until(*args, **kwargs):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)
setattr(place, name, until)
from polyserve_training.pretrain import train
from polyserve_training.recipe import read_recipe
train(read_recipe(Path(sys.argv[1]), sys.argv[6:]))
"""
# The same at one call of all that training makes, counted over its threads; 0: at none, and their number is printed
KILLED_ANYWHERE = """
import os, signal, sys, threading
from pathlib import Path
from polyserve_training.pretrain import train
from polyserve_training.recipe import read_recipe
left = int(sys.argv[2])
def watch(frame, event, argument):
    global left
    if event in ("call", "c_call") and "polyserve_training" in frame.f_code.co_filename:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
recipe = read_recipe(Path(sys.argv[1]), sys.argv[3:])
threading.setprofile(watch)
sys.setprofile(watch)
train(recipe)
print(-left)
"""
MOMENTS = {
    "before the first checkpoint": ("polyserve_training.trainer", "Trainer", "step", 1),
    "between two checkpoints": ("polyserve_training.trainer", "Trainer", "step", 3),
    "just before a stage border": ("polyserve_training.trainer", "Trainer", "step", 5),
    "in the middle of a step": ("polyserve_training.optimizer", "AdamW", "gradient_norm", 7),
    "before a checkpoint's first byte": ("polyserve_training.checkpoint_files", "", "save_file", 1),
    "after a checkpoint's tensors": ("polyserve_training.checkpoint_files", "", "to_disk", 1),
    "after a checkpoint was renamed": ("polyserve_training.checkpoint", "", "to_disk", 5),
    "while an old checkpoint goes": ("os", "", "unlink", 1),
}


def lines(folder: Path) -> list[dict[str, object]]:
    """What the log says but for times."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_log(folder)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tokenizer_folder, data_folder) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    sha256 = train(small_recipe(folder, tokenizer=tokenizer_folder, data=data_folder))
    return folder / "run", sha256


@pytest.fixture
def recipe(tmp_path, tokenizer_folder, data_folder) -> Recipe:
    return small_recipe(tmp_path, tokenizer=tokenizer_folder, data=data_folder)


# how checkpoints are written matters to moments of their writing alone
@pytest.mark.parametrize(
    ("moment", "asynchronous"),
    [(moment, "true") for moment in MOMENTS] + [(moment, "false") for moment in list(MOMENTS)[4:]],
)
def test_a_run_that_is_killed_and_started_again_has_the_same_bits(
    moment, asynchronous, uninterrupted, recipe, tmp_path, tokenizer_folder, data_folder
):
    path = write_recipe(tmp_path, tokenizer=tokenizer_folder, data=data_folder)
    arguments = [str(path), *map(str, MOMENTS[moment]), f"checkpoints.asynchronous={asynchronous}"]
    killed = run(KILLED, *arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    folder, sha256 = uninterrupted
    assert train(recipe) == sha256
    assert lines(tmp_path / "run") == lines(folder)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-00000008", "step-00000009"]


@pytest.fixture(scope="module")
def num_calls(tmp_path_factory, tokenizer_folder, data_folder) -> int:
    path = write_recipe(tmp_path_factory.mktemp("counted"), tokenizer=tokenizer_folder, data=data_folder)
    return int(run(KILLED_ANYWHERE, path, 0).stdout)


def run(program: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
def test_a_run_that_is_killed_again_and_again_has_the_same_bits(
    seed, num_calls, uninterrupted, recipe, tmp_path, tokenizer_folder, data_folder
):
    path = write_recipe(tmp_path, tokenizer=tokenizer_folder, data=data_folder)
    moments = random.Random(seed)
    for _ in range(2):
        killed = run(KILLED_ANYWHERE, path, moments.randrange(1, num_calls // 2))
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    folder, sha256 = uninterrupted
    assert train(recipe) == sha256
    assert lines(tmp_path / "run") == lines(folder)


def test_a_run_that_is_done_is_left_alone(uninterrupted, tmp_path, recipe):
    folder, sha256 = uninterrupted
    shutil.copytree(folder, tmp_path / "run")
    assert train(recipe) == sha256
    assert lines(tmp_path / "run") == lines(folder)


def test_the_same_recipe_twice_is_the_same_run(uninterrupted, tmp_path, recipe):
    assert train(recipe) == uninterrupted[1]


def test_another_seed_is_another_run(uninterrupted, tmp_path, tokenizer_folder, data_folder):
    recipe = small_recipe(tmp_path, "seed=1", tokenizer=tokenizer_folder, data=data_folder)
    assert train(recipe) != uninterrupted[1]


def test_layers_that_are_computed_again_for_their_gradients_change_no_bit(
    uninterrupted, tmp_path, tokenizer_folder, data_folder
):
    recipe = small_recipe(tmp_path, "compute.recompute=true", tokenizer=tokenizer_folder, data=data_folder)
    assert train(recipe) == uninterrupted[1]


def test_the_loss_goes_down(uninterrupted):
    losses = [line["loss"] for line in lines(uninterrupted[0])]
    assert len(losses) == 9
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("override", "name"),
    [("optimizer.lr=2e-2", "optimizer.lr"), ("model.hidden_size=64", "model.n_embd"), ("seed=5", "seed")],
)
def test_another_recipe_does_not_go_on_with_a_run(
    override, name, uninterrupted, tmp_path, tokenizer_folder, data_folder
):
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    recipe = small_recipe(tmp_path, override, tokenizer=tokenizer_folder, data=data_folder)
    before = lines(tmp_path / "run")
    with pytest.raises(TrainingError, match=rf"step-00000009: is of another run: {name} was"):
        train(recipe)
    assert lines(tmp_path / "run") == before


def test_what_changes_no_more_than_bits_may_change(uninterrupted, tmp_path, tokenizer_folder, data_folder):
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000009")
    overrides = ["batch.micro_rows=4", "checkpoints.every=1", "validation={sources: {held: " + str(data_folder) + "}}"]
    train(small_recipe(tmp_path, *overrides, tokenizer=tokenizer_folder, data=data_folder))
    *steps, validation = lines(tmp_path / "run")
    expected = lines(uninterrupted[0])
    assert steps[:8] == expected[:8]
    assert steps[8]["loss"] == pytest.approx(expected[8]["loss"], abs=1e-4)
    assert set(validation["validation"]) > {"held/de", "held/zh"}


def test_a_damaged_checkpoint_is_named(uninterrupted, tmp_path, recipe):
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    path = tmp_path / "run/checkpoints/step-00000009/state-00001-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"step-00000009/state-00001-of-00001.safetensors: cannot be read"):
        train(recipe)


# The command where no file can be larger than 60,000 bytes
SHORT_OF_SPACE = """
import resource, sys
from polyserve.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
sys.exit(main())
"""


def test_a_run_that_cannot_write_a_checkpoint_goes_on_from_the_one_before_to_the_same_bits(
    uninterrupted, recipe, tmp_path
):
    folder, sha256 = uninterrupted
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000009")
    short = run(SHORT_OF_SPACE, "train", tmp_path / "recipe.yaml")
    assert short.returncode == 2
    assert "checkpoints/step-00000009: cannot be written: " in short.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000008"]
    assert train(recipe) == sha256
    assert lines(tmp_path / "run") == lines(folder)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_one_line_and_costs_no_older_checkpoint(asynchronous, uninterrupted, tmp_path, monkeypatch):
    shutil.copytree(uninterrupted[0] / "checkpoints", tmp_path / "checkpoints")
    checkpoints = Checkpoints(tmp_path, keep=1, asynchronous=asynchronous)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    def save() -> None:
        checkpoints.save(10, {}, {})
        checkpoints.wait()

    monkeypatch.setattr("polyserve_training.checkpoint_files.save_file", full)
    with pytest.raises(TrainingError, match=r"step-00000010: cannot be written: .* No space left on device"):
        save()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000008", "step-00000009"]


def test_a_checkpoint_says_what_it_was_made_with(uninterrupted):
    meta = read_meta(uninterrupted[0] / "checkpoints/step-00000009")
    assert meta["step"] == 9
    assert meta["recipe"]["optimizer"]["lr"] == 0.01
    assert set(meta["data"]) == {"texts"}
    assert json.dumps(meta["numerics"]).count("threads") == 1
