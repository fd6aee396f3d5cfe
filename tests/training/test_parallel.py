"""Several processes learn what one does: the same rows in every step, and losses that differ by rounding alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyserve.errors import TrainingError
from polyserve_training.parallel import Processes
from polyserve_training.pretrain import prepare, train
from polyserve_training.run_log import read_log
from support.training_runs import small_recipe, write_recipe

COMMAND = "import sys\nfrom polyserve.cli.main import main\nsys.exit(main())\n"
FP32 = ("compute.dtype=float32", "optimizer.lr=1e-3", "batch.micro_rows=null")


def train_with_two(folder: Path, *arguments: str) -> str:
    """Run the command in two processes; what they print."""
    script = folder / "command.py"
    script.write_text(COMMAND)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*launch, "train", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_learn_what_one_learns_and_one_goes_on_with_their_run(tmp_path, tokenizer_folder, data_folder):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = small_recipe(tmp_path / "one", *FP32, tokenizer=tokenizer_folder, data=data_folder)
    train(alone)
    recipe = write_recipe(tmp_path / "two", tokenizer=tokenizer_folder, data=data_folder)
    printed = train_with_two(tmp_path, str(recipe), *FP32, "checkpoints.keep=9")
    assert printed.count("done: weights and optimiser have SHA-256") == 1
    one, two = (read_log(tmp_path / name / "run") for name in ("one", "two"))
    assert [line["rows"] for line in two] == [line["rows"] for line in one]
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-5)

    for step in (8, 9):  # one process goes on after step 6
        for path in (tmp_path / f"two/run/checkpoints/step-{step:08}").iterdir():
            path.unlink()
        path.parent.rmdir()
    train(small_recipe(tmp_path / "two", *FP32, tokenizer=tokenizer_folder, data=data_folder))
    again = read_log(tmp_path / "two" / "run")
    assert [line["rows"] for line in again] == [line["rows"] for line in one]
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in one], abs=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_share_the_rows_of_a_step(size, tmp_path, tokenizer_folder, data_folder):
    recipe = small_recipe(tmp_path, *FP32, tokenizer=tokenizer_folder, data=data_folder)
    [whole] = prepare(recipe).curriculum.batch(3)
    parts = [prepare(recipe, Processes(rank, size)).curriculum.batch(3) for rank in range(size)]
    assert sum(len(part.token_ids) for [part] in parts) == len(whole.token_ids)
    assert sorted(int(token) for [part] in parts for token in part.token_ids) == sorted(whole.token_ids.tolist())


@pytest.mark.parametrize(("size", "micro_rows"), [(3, "null"), (8, "null"), (4, 2)])
def test_rows_that_processes_cannot_share_evenly_are_refused(size, micro_rows, tmp_path, tokenizer_folder, data_folder):
    recipe = small_recipe(tmp_path, f"batch.micro_rows={micro_rows}", tokenizer=tokenizer_folder, data=data_folder)
    with pytest.raises(TrainingError, match=f"batch: {size} processes cannot share 4 rows evenly"):
        prepare(recipe, Processes(0, size))
