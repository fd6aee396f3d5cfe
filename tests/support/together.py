"""Work on training by several processes of one thread each, one task after another, since a start takes seconds.

They meet as torchrun's processes do, by what the environment says, but at a place of its own for each task.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from polyserve_training.checkpoint import Checkpoints, restore
from polyserve_training.model import build
from polyserve_training.parallel import join
from polyserve_training.pretrain import prepare, train
from polyserve_training.recipe import read_recipe
from polyserve_training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Task:
    """Train as a recipe says; or, with `source`, read that checkpoint and write it again as the run's."""

    recipe: str
    overrides: Sequence[str] = ()
    source: str | None = None


def work_together(num_processes: int, tasks: Sequence[Task]) -> None:
    described = json.dumps([asdict(task) | {"port": _free_port()} for task in tasks])
    place = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(num_processes)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", __file__, described],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * num_processes, "\n".join(errors)[-5000:]


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def perform(task: Task) -> None:
    recipe = read_recipe(Path(task.recipe), task.overrides)
    if task.source is None:
        train(recipe)
        return
    processes = join(recipe.parallel, "cpu")
    prepared = prepare(recipe, processes)
    trainer = Trainer(build(recipe, prepared.described, prepared.device, processes), recipe, processes)
    restore(Path(task.source), trainer.state(), processes)
    checkpoints = Checkpoints(Path(recipe.run), keep=1, asynchronous=True, processes=processes)
    checkpoints.save(1, trainer.state(), {"step": 1})
    checkpoints.wait()
    processes.leave()


if __name__ == "__main__":
    for values in json.loads(sys.argv[1]):
        os.environ["MASTER_PORT"] = str(values.pop("port"))
        perform(Task(**values))
