"""`polyserve train`: a recipe becomes a run, and a run that was stopped anywhere becomes the run it would have been.

RUN/model/          config.json and the tokenizer: what `polyserve convert` needs beside a checkpoint
RUN/log.jsonl       a line for each step (run_log.py)
RUN/checkpoints/    see checkpoint.py. A run that has one goes on from the newest; its recipe must be the same
Several processes may share the work (parallel.py). Everything is checked before the first step. Ctrl-C and SIGTERM end
the run after the step that computes, with a checkpoint.
"""

import shutil
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import orjson
import torch

from polyserve.errors import TrainingError
from polyserve.log import get_logger
from polyserve.tokenizer.fingerprint import TEMPLATE_FILE, TOKENIZER_FILES, tokenizer_sha256
from polyserve.tokenizer.load import load_tokenizer
from polyserve_kernels.dispatch import numerics_id, use_backend
from polyserve_training.checkpoint import Checkpoints, digest, read_meta, restore
from polyserve_training.config import Recipe
from polyserve_training.curriculum import Curriculum
from polyserve_training.dashboards import check_dashboards, open_dashboards
from polyserve_training.data.packing import RowSource
from polyserve_training.model import Described, build, describe, flops_per_token
from polyserve_training.parallel import ALONE, Processes, join
from polyserve_training.recipe import as_values
from polyserve_training.run_log import Done, RunLog
from polyserve_training.sources import check_stops, open_sources, open_validation
from polyserve_training.tensor_parallel import share_of
from polyserve_training.trainer import StepResult, Trainer
from polyserve_training.validation import validate

_log = get_logger("polyserve.training")
# What may be different when a run goes on. Those of the second row change bits, though not what is learned: it is said
_MAY_CHANGE = ("run", "checkpoints", "validation", "log", "compute.peak_tflops")
_CHANGE_BITS = (
    "compute.device",
    "compute.backend",
    "compute.threads",
    "compute.recompute",
    "batch.micro_rows",
    "parallel",
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that was found to be possible."""

    recipe: Recipe
    described: Described
    validation: dict[str, RowSource]
    chat_template: str | None  # its source, where conversations are learned from
    curriculum: Curriculum
    device: torch.device
    identity: dict[str, Any]  # what a checkpoint must have been made with


def train(recipe: Recipe) -> str | None:
    """Run to the end and return the SHA-256 of weights and optimiser, in the first process; in others None.

    Raises TrainingError or ModelLoadError."""
    processes = join(recipe.parallel, _device(recipe.compute.device).type)
    try:
        return _train(prepare(recipe, processes), processes)
    except OSError as error:  # a full disk, or data that has gone
        raise TrainingError(f"{error.filename or recipe.run}: {error.strerror or error}") from error
    finally:
        processes.leave()


def _train(prepared: Prepared, processes: Processes) -> str | None:
    recipe = prepared.recipe
    checkpoints = Checkpoints(
        Path(recipe.run),
        keep=recipe.checkpoints.keep,
        asynchronous=recipe.checkpoints.asynchronous,
        processes=processes,
    )
    latest = checkpoints.latest()
    first = 0 if latest is None else _check_same_run(latest, prepared.identity)
    for stage, rows in groupby(prepared.curriculum.table(), key=lambda row: row.stage):
        _log.info("stage %s: %s", stage, ", ".join(f"{x.stream} {x.share:.1%} ({x.epochs:.2f} epochs)" for x in rows))
    model = build(recipe, prepared.described, prepared.device, processes)
    trainer = Trainer(model, recipe, processes)
    if latest is not None:
        restore(latest, trainer.state(), processes)
        trainer.optimizer.weights_follow()
        _log.info("going on after step %d, from %s", first, latest)
    processes.total(0)  # all have read what there was before the first one writes
    log = _open_log(prepared, first) if processes.first else None
    try:
        _Run(prepared, trainer, checkpoints, processes, log).steps(first)
    finally:
        if log is not None:
            log.close()
    checkpoints.wait()
    return digest(checkpoints.at(None)) if processes.first else None


def _open_log(prepared: Prepared, first: int) -> RunLog:
    recipe = prepared.recipe
    _write_model_folder(Path(recipe.run) / "model", prepared)
    return RunLog(
        Path(recipe.run),
        num_steps=recipe.num_steps,
        first=first,
        flops_per_token=flops_per_token(prepared.described.config, context=recipe.batch.context),
        peak_tflops=recipe.compute.peak_tflops,
        dashboards=open_dashboards(recipe.log, Path(recipe.run), first=first, recipe=as_values(recipe)),
    )


def prepare(recipe: Recipe, processes: Processes = ALONE) -> Prepared:
    """Check everything that can be checked before anything is computed or written."""
    if recipe.compute.threads is not None:
        torch.set_num_threads(recipe.compute.threads)
    device = _device(recipe.compute.device)
    if recipe.compute.backend is not None:
        try:
            use_backend(recipe.compute.backend)
        except ValueError as error:
            raise TrainingError(f"compute.backend: {error}") from error
    check_dashboards(recipe.log)
    folder = Path(recipe.tokenizer)
    tokenizer = load_tokenizer(folder, chat_template=recipe.chat.template if recipe.chat is not None else None)
    if tokenizer.eos_id is None:
        raise TrainingError(f"tokenizer: {folder} has no end-of-text token")
    described = describe(recipe, tokenizer)
    share_of(described.config, recipe.parallel.tensor)  # which there must be
    sha256 = tokenizer_sha256(folder)
    sources = open_sources(recipe, tokenizer, tokenizer_sha256=sha256)
    check_stops(sources.streams, described.config.eos_ids)
    validation = open_validation(recipe, tokenizer, tokenizer_sha256=sha256)
    template = tokenizer.chat_template.source if recipe.chat is not None and tokenizer.chat_template else None
    identity = {
        "recipe": as_values(recipe),
        "model": described.hf_config,
        "data": sources.fingerprints,
        "tokenizer": sha256,
        "chat_template": template,
        "numerics": f"{numerics_id(device)}-threads{torch.get_num_threads()}-processes{processes.size}",
    }
    curriculum = Curriculum(recipe, sources.streams, rank=processes.data_rank, size=processes.data)
    return Prepared(recipe, described, validation, template, curriculum, device, identity)


@dataclass(frozen=True, slots=True)
class _Run:
    """What all processes do together; the first one says it."""

    prepared: Prepared
    trainer: Trainer
    checkpoints: Checkpoints
    processes: Processes
    log: RunLog | None  # of the first

    def steps(self, first: int) -> None:
        """Every step that is left. The next batch is read while one computes."""
        curriculum, num_steps = self.prepared.curriculum, self.prepared.recipe.num_steps
        with ThreadPoolExecutor(1) as reader, _stop_signals() as came:
            ahead = reader.submit(curriculum.batch, first) if first < num_steps else None
            for step in range(first, num_steps):
                assert ahead is not None
                parts = ahead.result()
                ahead = reader.submit(curriculum.batch, step + 1) if step + 1 < num_steps else None
                result = self.trainer.step(step, parts)
                stopped = self.processes.total(len(came)) > 0
                self._after(step + 1, result, stopped=stopped)
                if stopped:
                    raise KeyboardInterrupt

    def _after(self, number: int, result: StepResult, *, stopped: bool) -> None:
        """number: steps that are done.  stopped: this was the last one for now."""
        recipe, curriculum = self.prepared.recipe, self.prepared.curriculum
        if self.log is not None:
            self.log.step(Done(number, curriculum.stage_of(number - 1), result, curriculum.samples(number - 1)))
        last = number == recipe.num_steps
        if recipe.validation is not None and (last or number % recipe.validation.every == 0):
            self._validate(number, recipe.validation.rows)
        if last or stopped or number % recipe.checkpoints.every == 0:
            self._save(number)
        if stopped:
            self.checkpoints.wait()
            _log.info("stopped after step %d; the same command goes on from there", number)

    def _save(self, number: int) -> None:
        if self.log is not None:
            self.log.flush()
        self.checkpoints.save(number, self.trainer.state(), self.prepared.identity | {"step": number})
        if self.log is not None:
            self.log.pause()

    def _validate(self, number: int, rows: int) -> None:
        if self.log is not None:
            self.log.flush()
        found = validate(self.trainer.model, self.prepared.validation, rows=rows, processes=self.processes)
        each = ", ".join(
            f"{name} {x.loss:.3f} ({x.bits_per_byte:.3f} bits/byte"
            f"{'' if x.stop_loss is None else f', ends of answers {x.stop_loss:.3f}'})"
            for name, x in found.items()
        )
        _log.info("validation after step %d: %s", number, each)
        if self.log is not None:
            self.log.write({"step": number, "validation": {name: asdict(loss) for name, loss in found.items()}})
            self.log.pause()


def _check_same_run(latest: Path, identity: Mapping[str, Any]) -> int:
    """The step that a checkpoint was made after. Raises TrainingError if it is another run's."""
    meta = read_meta(latest)
    # through JSON, as the checkpoint's went
    now, then = _flat(orjson.loads(orjson.dumps(identity))), _flat({key: meta.get(key) for key in identity})
    notes = []
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) == then.get(key):
            continue
        name = key.removeprefix("recipe.")
        if key == "numerics" or name.startswith(_CHANGE_BITS):
            notes.append(f"{name} was {then.get(key)}, is {now.get(key)}")
        elif not name.startswith(_MAY_CHANGE):
            raise TrainingError(
                f"{latest}: is of another run: {name} was {then.get(key)!r} and is {now.get(key)!r}; "
                "undo that, or name another folder with run=..."
            )
    if notes:
        _log.warning("the same is learned, but not to the bit: %s", "; ".join(notes))
    step = meta.get("step")
    if not isinstance(step, int):
        raise TrainingError(f"{latest}: its step is {step!r}")
    return step


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested values by their dotted names."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if pairs is None:
        return {name: values}
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat |= _flat(value, f"{name}.{key}" if name else str(key))
    return flat


def _write_model_folder(folder: Path, prepared: Prepared) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_bytes(orjson.dumps(prepared.described.hf_config, option=orjson.OPT_INDENT_2))
        for name in (*TOKENIZER_FILES, TEMPLATE_FILE):
            path = Path(prepared.recipe.tokenizer) / name
            if path.is_file():
                shutil.copyfile(path, folder / name)
        if prepared.chat_template is not None:
            (folder / TEMPLATE_FILE).write_text(prepared.chat_template, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written: {error}") from error


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("compute.device: there is no GPU that torch can use")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that gets the number of SIGINT or SIGTERM when one comes; a second one has its usual effect.

    Where training is not the main thread, as under Ray Train, signals are others' business."""
    came: list[int] = []
    if current_thread() is not main_thread():
        yield came
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore_handlers() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def note(number: int, _frame: object) -> None:
        came.append(number)
        restore_handlers()

    for number in former:
        signal.signal(number, note)
    try:
        yield came
    finally:
        restore_handlers()
