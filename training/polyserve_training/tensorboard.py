"""Numbers of a run for TensorBoard, in RUN/tensorboard: tensorboard --logdir runs"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from torch.utils.tensorboard import SummaryWriter


class RunDashboard:
    def __init__(self, run: Path, *, first: int, recipe: Mapping[str, Any]) -> None:
        # steps that are done again take the place of those that were written before
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first + 1)
        self._writer.add_text("recipe", f"    {orjson.dumps(recipe).decode()}", first)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        self._writer.close()
