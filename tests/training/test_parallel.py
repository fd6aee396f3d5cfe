"""Several processes learn what one does: the same rows in every step, and losses that differ by rounding alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyserve.errors import TrainingError
from polyserve_training.config import ParallelRecipe
from polyserve_training.parallel import Processes, join
from polyserve_training.pretrain import prepare, train
from polyserve_training.run_log import read_log
from support.training_runs import small_recipe, write_recipe

COMMAND = "import sys\nfrom polyserve.cli.main import main\nsys.exit(main())\n"
FP32 = ("compute.dtype=float32", "optimizer.lr=1e-3", "batch.micro_rows=null")


def torchrun(program: Path, *arguments: object, restarts: int = 0) -> "subprocess.CompletedProcess[str]":
    """Start a program in two processes, and all of them again when one has died."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*launch, f"--max-restarts={restarts}", str(program), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )


def train_with_two(folder: Path, *arguments: str) -> str:
    """Run the command in two processes; what they print."""
    program = folder / "command.py"
    program.write_text(COMMAND)
    done = torchrun(program, "train", *arguments)
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


# Python that ends the second process, as kill -9 does, at its first start, at one call of the function that brings what
# was written to the disk
KILLED_ONCE = """
import os, signal, sys
from pathlib import Path
from polyserve_training import checkpoint_files
from polyserve_training.pretrain import train
from polyserve_training.recipe import read_recipe
to_disk, count = checkpoint_files.to_disk, int(sys.argv[2])
def until(path):
    global count
    count -= 1
    if count == 0 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    to_disk(path)
checkpoint_files.to_disk = until
print(train(read_recipe(Path(sys.argv[1]), sys.argv[3:])))
"""


@pytest.mark.parametrize("layout", ["parallel.shard=true", pytest.param("parallel.tensor=2", marks=pytest.mark.slow)])
def test_processes_of_which_one_is_killed_while_it_saves_start_again_and_have_the_same_bits(
    layout, tmp_path, tokenizer_folder, data_folder
):
    digests = []
    for killed_at in (2, 0):  # in the second checkpoint; never
        folder = tmp_path / str(killed_at)
        folder.mkdir()
        (folder / "program.py").write_text(KILLED_ONCE)
        recipe = write_recipe(folder, tokenizer=tokenizer_folder, data=data_folder)
        done = torchrun(folder / "program.py", recipe, killed_at, layout, restarts=1)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("exitcode: -9" in done.stderr) == (killed_at > 0)
        digests.append([line for line in done.stdout.splitlines() if line != "None"])
        assert len(list(folder.glob("run/checkpoints/step-*/state-*-of-00002.safetensors"))) == 4
    assert digests[0] == digests[1]
    assert len(digests[0]) == 1


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


@pytest.mark.parametrize(
    ("recipe", "environment", "message"),
    [
        ({"tensor": 2}, {}, "parallel.tensor: 1 processes cannot be groups of 2"),
        ({"tensor": 4}, {"WORLD_SIZE": "6"}, "parallel.tensor: 6 processes cannot be groups of 4"),
        ({"tensor": 2, "data": 4}, {"WORLD_SIZE": "4"}, "parallel.data: 4 processes are 2 times 2, not 4 times"),
        (
            {},
            {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"},
            "torchrun: processes that are started again meet only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        ),
    ],
)
def test_a_layout_that_there_cannot_be_is_refused_by_name(recipe, environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=message):
        join(ParallelRecipe(**recipe), "cpu")


@pytest.mark.parametrize(
    ("name", "number", "settings"),
    [
        ("num_heads", 6, {"num_heads": 6}),
        ("num_kv_heads", 2, {"family": "llama", "num_heads": 4, "num_kv_heads": 2}),
        ("mlp_size", 102, {"mlp_size": 102, "num_heads": 4}),
        ("vocab_size", 602, {"vocab_size": 602, "num_heads": 4}),
    ],
)
def test_a_model_that_processes_cannot_share_is_refused_by_name(
    name, number, settings, tmp_path, tokenizer_folder, data_folder
):
    words = [f"model.{key}={value}" for key, value in settings.items()]
    recipe = small_recipe(
        tmp_path, "parallel.tensor=4", "model.hidden_size=96", *words, tokenizer=tokenizer_folder, data=data_folder
    )
    message = f"parallel.tensor: 4 processes cannot share the model's {name} of {number}"
    with pytest.raises(TrainingError, match=message):
        prepare(recipe)
