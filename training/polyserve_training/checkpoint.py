"""A run's state on disk, such that a process may die at any moment and the next ones go on to the same bits.

RUN/checkpoints/step-00000500/state-*.safetensors   master weights, moments, what the spike guard has seen
RUN/checkpoints/step-00000500/meta.json             the step, the recipe, fingerprints of data and tokenizer, numerics
All processes write into a folder whose name ends in `.partial`; when all of it is on the disk, the first one renames
it: what has a final name is whole. Older ones go only after that, so a full disk costs the new one and none of the old.
Several machines need a file system that they share.
"""

import hashlib
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError
from torch import Tensor, no_grad, uint8
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from polyserve.errors import TrainingError
from polyserve_training.checkpoint_files import Files, LoadingPlanner, Reader, SavingPlanner, Writer, to_disk
from polyserve_training.parallel import ALONE, Processes
from polyserve_training.placement import Part

META, PREFIX, PARTIAL = "meta.json", "step-", ".partial"
State = Mapping[str, Tensor | Part]


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Path, *, keep: int, asynchronous: bool, processes: Processes = ALONE) -> None:
        self._folder, self._keep, self._asynchronous = run / "checkpoints", keep, asynchronous
        self._processes = processes
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def latest(self) -> Path | None:
        """The newest whole one."""
        return max(self._whole(), default=None, key=lambda path: path.name)

    def at(self, step: int | None) -> Path:
        """The one after a step; None: the newest. Raises TrainingError if there is none."""
        path = self.latest() if step is None else self._folder / f"{PREFIX}{step:08}"
        if path is None or not path.is_dir():
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            there = ", ".join(sorted(path.name for path in self._whole()))
            raise TrainingError(f"{self._folder}: has {wanted}; there is {there or 'none'}")
        return path

    def save(self, step: int, state: State, meta: Mapping[str, Any]) -> None:
        """Write a checkpoint, all processes together; if asynchronous, from a copy, while the caller goes on.

        Raises TrainingError, also for the one before."""
        self.wait()
        if not self._asynchronous:
            self._write(step, state, meta)
            return
        copy = {name: _copy(held) for name, held in state.items()}
        self._writing = self._pool.submit(self._write, step, copy, dict(meta))

    def wait(self) -> None:
        """Until what was saved is on the disk. Raises TrainingError if it could not be written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, state: State, meta: Mapping[str, Any]) -> None:
        final = self._folder / f"{PREFIX}{step:08}"
        partial_folder = final.with_name(final.name + PARTIAL)
        try:
            if self._processes.first:
                self._folder.mkdir(parents=True, exist_ok=True)
                for left_over in self._folder.glob(f"*{PARTIAL}"):
                    shutil.rmtree(left_over)
            writer = Writer(partial_folder, partial(self._commit, partial_folder, final, meta))
            _together(self._processes, save, dict(state), storage_writer=writer, planner=SavingPlanner())
        except (OSError, SafetensorError, CheckpointException) as error:
            if self._processes.first:
                shutil.rmtree(partial_folder, ignore_errors=True)
            raise TrainingError(f"{final}: cannot be written: {_cause(error)}") from error

    def _commit(self, written: Path, final: Path, meta: Mapping[str, Any]) -> None:
        (written / META).write_bytes(orjson.dumps(meta, option=orjson.OPT_INDENT_2))
        for path in (written / META, written):
            to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        written.rename(final)
        to_disk(self._folder)
        for old in sorted(self._whole())[: -self._keep]:
            shutil.rmtree(old)

    def _whole(self) -> list[Path]:
        return [path for path in self._folder.glob(f"{PREFIX}*") if path.suffix != PARTIAL]


def read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = orjson.loads((folder / META).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise TrainingError(f"{folder / META}: cannot be read: {error}") from error
    if not isinstance(meta, dict):
        raise TrainingError(f"{folder / META}: must hold an object, got {type(meta).__name__}")
    return meta


def restore(folder: Path, state: State, processes: Processes = ALONE) -> None:
    """Read a checkpoint of any layout into tensors, all processes together.

    Raises TrainingError, before any is written to, if names or shapes differ."""
    files = Files(folder)
    if files.blocks.keys() != state.keys():
        different = sorted(files.blocks.keys() ^ state.keys())
        raise TrainingError(f"{folder}: is of another model: {different[0]} is not in both")
    for name, held in state.items():
        if files.shape(name) != held.size():
            shapes = f"{list(files.shape(name))}, not {list(held.size())}"
            raise TrainingError(f"{folder}: is of another model: {name} is {shapes}")
    try:
        with no_grad():
            _together(processes, load, dict(state), storage_reader=Reader(files), planner=LoadingPlanner())
    except CheckpointException as error:
        raise TrainingError(f"{folder}: cannot be read: {_cause(error)}") from error


def digest(folder: Path) -> str:
    """SHA-256 of the names and bits of a checkpoint, whatever its layout."""
    whole, files = hashlib.sha256(), Files(folder)
    for name in sorted(files.blocks):
        whole.update(name.encode() + b"\0")
        whole.update(files.whole(name).flatten().view(uint8).numpy().data)
    return whole.hexdigest()


def _copy(held: Tensor | Part) -> Tensor | Part:
    if isinstance(held, Part):
        return Part(held.tensor.to("cpu", copy=True), held.placement)
    return held.to("cpu", copy=True)


def _together(processes: Processes, function: Callable[..., object], state: dict[str, Any], **ends: Any) -> None:
    """Save or load with the processes of this run."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # so it is, in a process alone
        function(state, process_group=processes.saving, no_dist=processes.size == 1, **ends)


def _cause(error: BaseException) -> object:
    """What a process said of what torch's checkpoints caught."""
    if isinstance(error, CheckpointException):
        return next(iter(error.failures.values()))[0]
    return error
