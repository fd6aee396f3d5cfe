"""Numbers of a run for Weights & Biases, in RUN/wandb.

Its own variables say where they go: WANDB_MODE=offline keeps them here, for `wandb sync`; WANDB_PROJECT, WANDB_ENTITY.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb


class RunDashboard:
    def __init__(self, run: Path, *, first: int, recipe: Mapping[str, Any]) -> None:
        """A run that goes on is the same one there: its id is kept in RUN/wandb-id."""
        kept = run / "wandb-id"
        if not (first and kept.exists()):
            kept.write_text(secrets.token_hex(4))
        self._run = wandb.init(dir=str(run), id=kept.read_text(), resume="allow", name=run.name, config=dict(recipe))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()
