"""Work on training by several processes of one thread each, one task after another, since a start takes seconds.

They meet as torchrun's processes do: in a store of who started them, one for each task (pytorch/pytorch#135712).
"""

import faulthandler
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile

from torch.distributed import TCPStore

from polyserve_training.checkpoint import Checkpoints, restore
from polyserve_training.model import build
from polyserve_training.parallel import join
from polyserve_training.pretrain import prepare, train
from polyserve_training.recipe import read_recipe
from polyserve_training.trainer import Trainer

LIMIT_S = 240  # for one task; then it says where it hangs


@dataclass(frozen=True, slots=True)
class Task:
    """Train as a recipe says; or, with `source`, read that checkpoint and write it again as the run's."""

    recipe: str
    overrides: Sequence[str] = ()
    source: str | None = None


def work_together(num_processes: int, tasks: Sequence[Task]) -> None:
    # a port picked for later may be somebody's by then; a store's is taken at once
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in tasks]
    described = json.dumps([asdict(task) | {"port": store.port} for task, store in zip(tasks, stores, strict=True)])
    place = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(num_processes), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with TemporaryFile("w+") as errors:
        processes = [
            subprocess.Popen(
                [sys.executable, "-P", __file__, described],
                env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            for rank in range(num_processes)
        ]
        try:
            while any(process.poll() is None for process in processes) and not any(
                process.returncode for process in processes
            ):
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()  # who waits for one that died
                process.wait()
        errors.seek(0)
        assert not any(process.returncode for process in processes), errors.read()[-5000:]


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
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        perform(Task(**values))
