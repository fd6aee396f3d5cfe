"""A run's state on disk, such that a process may die at any moment and the next one goes on to the same bits.

RUN/checkpoints/step-00000500/state.safetensors   master weights, moments, what the spike guard has seen
RUN/checkpoints/step-00000500/meta.json           the step, the recipe, fingerprints of data and tokenizer, numerics
A folder is written under a name that ends in `.partial`, brought to the disk, and renamed: what has a final name is
whole. Older ones go only after that, so a full disk costs the new one and none of the old.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from polyserve.errors import TrainingError

STATE, META, PREFIX, PARTIAL = "state.safetensors", "meta.json", "step-", ".partial"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Path, *, keep: int, asynchronous: bool) -> None:
        self._folder, self._keep, self._asynchronous = run / "checkpoints", keep, asynchronous
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def latest(self) -> Path | None:
        """The newest whole one."""
        whole = [path for path in self._folder.glob(f"{PREFIX}*") if path.suffix != PARTIAL]
        return max(whole, default=None, key=lambda path: path.name)

    def at(self, step: int | None) -> Path:
        """The one after a step; None: the newest. Raises TrainingError if there is none."""
        path = self.latest() if step is None else self._folder / f"{PREFIX}{step:08}"
        if path is None or not path.is_dir():
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            there = ", ".join(sorted(path.name for path in self._folder.glob(f"{PREFIX}*") if path.suffix != PARTIAL))
            raise TrainingError(f"{self._folder}: has {wanted}; there is {there or 'none'}")
        return path

    def save(self, step: int, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint; if asynchronous, from a copy, while the caller goes on. Raises TrainingError, also for
        the one before."""
        self.wait()
        if not self._asynchronous:
            self._write(step, state, meta)
            return
        copy = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
        self._writing = self._pool.submit(self._write, step, copy, dict(meta))

    def wait(self) -> None:
        """Until what was saved is on the disk. Raises TrainingError if it could not be written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        final = self._folder / f"{PREFIX}{step:08}"
        partial = final.with_name(final.name + PARTIAL)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left_over in self._folder.glob(f"*{PARTIAL}"):
                shutil.rmtree(left_over)
            partial.mkdir()
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / STATE)
            (partial / META).write_bytes(orjson.dumps(meta, option=orjson.OPT_INDENT_2))
            for path in (partial / STATE, partial / META, partial):
                _to_disk(path)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _to_disk(self._folder)
            for old in sorted(self._folder.glob(f"{PREFIX}*"))[: -self._keep]:
                shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(f"{final}: cannot be written: {error}") from error


def read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = orjson.loads((folder / META).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise TrainingError(f"{folder / META}: cannot be read: {error}") from error
    if not isinstance(meta, dict):
        raise TrainingError(f"{folder / META}: must hold an object, got {type(meta).__name__}")
    return meta


def restore(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Read a checkpoint into tensors. Raises TrainingError, before any is written to, if names or shapes differ."""
    path = folder / STATE
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != set(state):
                different = sorted(names ^ set(state))
                raise TrainingError(f"{path}: is of another model: {different[0]} is not in both")
            for name, tensor in state.items():
                shape = file.get_slice(name).get_shape()
                if shape != list(tensor.shape):
                    raise TrainingError(f"{path}: is of another model: {name} is {shape}, not {list(tensor.shape)}")
            with torch.no_grad():
                for name, tensor in state.items():
                    tensor.copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and bits."""
    whole = hashlib.sha256()
    for name in sorted(state):
        whole.update(name.encode() + b"\0")
        whole.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
