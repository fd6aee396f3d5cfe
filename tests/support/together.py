"""Runs of training by several processes of one thread each, one after another, since a start takes seconds.

They meet as torchrun's processes do, by what the environment says, but at a place of its own for each run.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

PROGRAM = """
import json, os, sys
from pathlib import Path
from polyserve_training.pretrain import train
from polyserve_training.recipe import read_recipe
for port, path, *overrides in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    train(read_recipe(Path(path), overrides))
"""


def train_together(num_processes: int, recipes: Sequence[Sequence[str]]) -> None:
    """Train as recipes say.  recipes: of each, the path and what is set besides."""
    runs = json.dumps([[_free_port(), *recipe] for recipe in recipes])
    place = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(num_processes)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, runs],
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
