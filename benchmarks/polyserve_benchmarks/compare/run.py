"""The rounds of a comparison: every engine is loaded once, then they take turns, one computing at a time.

Within a round each run is made by one engine after another, with the same prompts; which one begins changes from round
to round. The limits are measured at the start of each round, while every engine is stopped. An engine that is missing,
or fails, is named and left out; the rest goes on.
"""

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from polyserve.model.families import read_config
from polyserve_benchmarks.compare.cost import kv_bytes
from polyserve_benchmarks.compare.figures import Seconds
from polyserve_benchmarks.compare.forms import form_for
from polyserve_benchmarks.compare.models import find, made_from, user_cache
from polyserve_benchmarks.compare.plan import SCRIPTS, Comparison, Run, longest, runs_of_a_round
from polyserve_benchmarks.compare.process import EngineFailed, EngineProcess, Job, python_of
from polyserve_benchmarks.compare.report import document_of, figure_rows
from polyserve_benchmarks.machine import matrix_rate, num_cores, read_bandwidth
from polyserve_benchmarks.workload import Workload, random_prompts

WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Task:
    """What every engine does."""

    path: Path  # of the model
    precision: str
    threads: int
    runs: list[Run]
    vocab_size: int
    seed: int

    def prompts(self, run: Run, number: int) -> list[list[int]]:
        """Of a run's turn with this number. Another number gives other prompts, so that no engine can remember one."""
        sizes = {"length": run.input_len, "vocab_size": self.vocab_size}
        return random_prompts(run.num_streams, **sizes, seed=self.seed + number)


@dataclass(slots=True)
class Entrants:
    """The engines that are still in with what they did, and why others are not."""

    engines: dict[str, EngineProcess] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, Seconds] = field(default_factory=dict)
    first_tokens: dict[str, list[int]] = field(default_factory=dict)  # of every stream of every run

    def add(self, name: str, engine: EngineProcess, runs: list[Run]) -> None:
        self.engines[name] = engine
        self.seconds[name] = {run: [] for run in runs}
        self.first_tokens[name] = []
        print(f"{name} {engine.version}: ready after {engine.start_seconds:.1f} s", flush=True)

    def drop(self, name: str, why: str) -> None:
        print(f"{name}: left out: {why}", flush=True)
        self.left_out[name] = why
        engine = self.engines.pop(name, None)
        if engine is not None:
            engine.close()

    def check(self) -> None:
        """Raises EngineFailed if no engine is left."""
        if not self.engines:
            raise EngineFailed(
                "no engine is left: " + "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
            )


def machine_limits(threads: int) -> tuple[float, float]:
    """Bytes and operations a second."""
    return read_bandwidth(threads), matrix_rate(threads)


def run(
    comparison: Comparison,
    workload: Workload,
    *,
    scripts: Mapping[str, Path] = SCRIPTS,
    limits: Callable[[int], tuple[float, float]] = machine_limits,
) -> dict[str, Any]:
    """Measure, print a table and, last, one JSON document; return it. Raises EngineFailed if no engine is left.

    scripts: each engine's file.  limits: measures the machine, given the threads.
    """
    path = find(comparison.model)
    config = read_config(path)
    task = Task(
        path=path,
        precision=comparison.precision,
        threads=comparison.threads or num_cores(),
        runs=runs_of_a_round(comparison, workload),
        vocab_size=config.vocab_size,
        seed=workload.seed,
    )
    if comparison.out:
        Path(comparison.out).parent.mkdir(parents=True, exist_ok=True)
    with loaded(comparison, task, scripts) as entrants:
        _warm_up(entrants, task)
        measured = []
        for number in range(comparison.rounds):
            entrants.check()
            measured.append(limits(task.threads))
            _round(entrants, task, number)
            print(f"round {number + 1} of {comparison.rounds} is done", flush=True)
        entrants.check()
        document = document_of(comparison, workload, task, entrants, measured)
    print("\n".join(figure_rows(document)))
    if comparison.out:
        Path(comparison.out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document), flush=True)
    return document


@contextmanager
def loaded(comparison: Comparison, task: Task, scripts: Mapping[str, Path]) -> Iterator[Entrants]:
    """The engines, one loaded after the other; none of them outlives the block, however it ends."""
    entrants = Entrants()
    peers = Path(comparison.peers).expanduser() if comparison.peers else user_cache() / "peers"
    before = signal.signal(signal.SIGTERM, _leave)  # children that are stopped would never end by themselves
    try:
        with tempfile.TemporaryDirectory(prefix="polyserve-compare-") as logs:
            for name in comparison.names:
                try:
                    python = python_of(name, peers)
                    job = _job(name, task)
                    log = Path(logs) / name
                    engine = EngineProcess(python, scripts[name], job, log=log, timeout_s=comparison.timeout_s)
                except EngineFailed as error:
                    entrants.drop(name, str(error))
                else:
                    entrants.add(name, engine, task.runs)
            yield entrants
    finally:
        for engine in entrants.engines.values():
            engine.close()
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (a signal handler's arguments)
    sys.exit(128 + number)


def _job(name: str, task: Task) -> Job:
    form = form_for(name, task.precision, task.path)
    return Job(
        model=str(form.path),
        threads=task.threads,
        max_streams=max(run.num_streams for run in task.runs),
        max_len=longest(task.runs),
        kv_bytes=kv_bytes(task.path, task.runs),
        cache=str(made_from(task.path)),
        options=form.options,
    )


def _warm_up(entrants: Entrants, task: Task) -> None:
    """Every shape once: compilation, allocation and page faults are not what is measured."""
    shapes = {(run.num_streams, run.input_len): run for run in task.runs}  # of two alike, the one that decodes as well
    for name, engine in list(entrants.engines.items()):
        try:
            for run in shapes.values():
                engine.run(task.prompts(run, 0), min(run.num_tokens, WARM_UP_TOKENS))
        except EngineFailed as error:
            entrants.drop(name, str(error))


def _round(entrants: Entrants, task: Task, number: int) -> None:
    """Every run by every engine."""
    for index, run in enumerate(task.runs):
        prompts = task.prompts(run, 1 + number * len(task.runs) + index)
        for name in _turns(list(entrants.engines), number):
            try:
                seconds, token_ids = entrants.engines[name].run(prompts, run.num_tokens)
            except EngineFailed as error:
                entrants.drop(name, str(error))
                continue
            entrants.seconds[name][run].append(seconds)
            entrants.first_tokens[name] += [ids[0] for ids in token_ids]


def _turns(names: list[str], number: int) -> Iterator[str]:
    """Each name once; round `number` begins with another one."""
    return (names[(number + turn) % len(names)] for turn in range(len(names)))
