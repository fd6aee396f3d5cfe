"""What a run says of itself: a JSON line for each step in RUN/log.jsonl, and a line for people.

A step's numbers are taken from the device when the next step has been launched, so that nothing waits for them.
After a restart the lines of steps that are done again are dropped first, and so is one that was cut off.
"""

import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from polyserve.log import get_logger
from polyserve_training.dashboards import Dashboard, numbers
from polyserve_training.data.mixture import Sample
from polyserve_training.trainer import StepResult

_log = get_logger("polyserve.training")
_SMOOTHING = 0.9  # of the time of a step, for the time left


@dataclass(frozen=True, slots=True)
class Done:
    """A step that is launched; `number` counts from 1."""

    number: int
    stage: str
    result: StepResult
    samples: list[Sample]  # what it learned from


class RunLog:
    def __init__(
        self,
        folder: Path,
        *,
        num_steps: int,
        first: int,
        flops_per_token: float,
        peak_tflops: float | None,
        dashboards: Sequence[Dashboard] = (),
    ) -> None:
        """first: steps that are done already."""
        self._dashboards = dashboards
        self._num_steps = num_steps
        self._flops_per_token, self._peak_tflops = flops_per_token, peak_tflops
        self._path = folder / "log.jsonl"
        _drop_after(self._path, first)
        self._file = self._path.open("ab", buffering=0)
        self._waiting: tuple[Done, float] | None = None  # with the seconds that it took
        self._step_s: float | None = None
        self._last = time.perf_counter()

    def step(self, done: Done) -> None:
        """Take in a step that was just launched."""
        self.flush()
        now = time.perf_counter()
        self._waiting = done, now - self._last
        self._last = now

    def flush(self) -> None:
        """Write the step that is waited for."""
        if self._waiting is None:
            return
        (done, elapsed), self._waiting = self._waiting, None
        result = done.result
        loss, norm, kept = float(result.loss), float(result.gradient_norm), bool(result.kept)
        self._step_s = elapsed if self._step_s is None else _SMOOTHING * self._step_s + (1 - _SMOOTHING) * elapsed
        rate = result.num_valid / elapsed
        tflops = rate * self._flops_per_token / 1e12
        values: dict[str, Any] = {
            "step": done.number,
            "stage": done.stage,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": result.learning_rate,
            "tokens": result.num_valid,
            "tokens_per_s": rate,
            "tflops": tflops,
            "mfu": tflops / self._peak_tflops if self._peak_tflops else None,
            "memory_mib": _memory_mib(result.loss.device),
            "skipped": not kept,
        }
        values["rows"] = dict(Counter(sample.stream.partition("/")[2] for sample in done.samples))  # by language
        if not kept:
            values["samples"] = [f"{sample.stream}:{sample.epoch}:{sample.row}" for sample in done.samples]
        self.write(values)
        left_s = round(self._step_s * (self._num_steps - done.number))
        utilisation = f" mfu {values['mfu']:.1%}" if values["mfu"] else f" {tflops:.2f} TFLOP/s"
        _log.info(
            "step %d/%d %s loss %.4f grad %.3f lr %.2e %s tok/s%s mem %.0f MiB left %s%s",
            done.number, self._num_steps, done.stage, loss, norm, result.learning_rate, f"{rate:,.0f}", utilisation,
            values["memory_mib"], f"{left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}",
            "" if kept else " SKIPPED",
        )  # fmt: skip

    def write(self, values: Mapping[str, Any]) -> None:
        self._file.write(orjson.dumps(values) + b"\n")
        found = dict(numbers(values))
        for dashboard in self._dashboards:
            dashboard.write(values["step"], found)

    def pause(self) -> None:
        """What happened until now is not part of the next step's time."""
        self._last = time.perf_counter()

    def close(self) -> None:
        self.flush()
        self._file.close()
        for dashboard in self._dashboards:
            dashboard.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Every whole line of a run's log."""
    path = folder / "log.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [orjson.loads(line) for line in lines]


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines of steps up to `step`."""
    if not path.exists():
        return
    kept = [values for values in read_log(path.parent) if values["step"] <= step]
    new = path.with_suffix(".partial")
    new.write_bytes(b"".join(orjson.dumps(values) + b"\n" for values in kept))
    new.replace(path)


def _memory_mib(device: torch.device) -> float:
    """The most that was held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
