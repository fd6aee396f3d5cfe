"""Programs that draw a run while it goes on: those that the recipe's `log` names take the numbers of log.jsonl's lines.

Each has the file of its name, tensorboard.py or wandb.py, with a RunDashboard.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from polyserve.errors import TrainingError


class Dashboard(Protocol):
    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_dashboards(names: Sequence[str]) -> None:
    """Raise TrainingError for a package that is not there."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise TrainingError(
                f"log: {name} needs a package that is not installed: pip install 'polyserve-lm[{name}]'"
            )


def open_dashboards(names: Sequence[str], run: Path, *, first: int, recipe: Mapping[str, Any]) -> list[Dashboard]:
    """Those of a run that goes on after its first `first` steps."""
    modules = [importlib.import_module(f"polyserve_training.{name}") for name in names]
    return [cast(Dashboard, module.RunDashboard(run, first=first, recipe=recipe)) for module in modules]


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line, by names such as validation/texts/de/loss."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield prefix + name, float(value)
