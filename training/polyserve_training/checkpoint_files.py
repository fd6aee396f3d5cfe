"""The tensors of a checkpoint in safetensors files, one of each process that wrote.

state-00001-of-00004.safetensors   NAME: a whole tensor   NAME@ROW,COLUMN: a block that begins there in the whole
torch's distributed checkpoints plan which process writes and reads what, and cut blocks anew for another layout; here
are their ends at the files. What they would write by themselves is a pickle, which runs what it says when it is read.
"""
# ruff: noqa: ARG002, ARG003 (methods are called with more than they need)

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from polyserve.errors import TrainingError
from polyserve_training.placement import Part

_DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Block:
    """Part of a tensor, in a file."""

    path: Path
    key: str
    place: ChunkStorageMetadata


class Files:
    """What a checkpoint's files hold. Raises TrainingError, which names the one that is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.blocks: dict[str, list[Block]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        paths = sorted(folder.glob("state-*.safetensors"))
        count = int(paths[0].stem.rpartition("-")[2]) if paths else 1
        for number in range(1, count + 1):
            self._open(folder / file_name(number, count))

    def _open(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (it is no mapping)
                    view = file.get_slice(key)
                    name, _, start = key.partition("@")
                    sizes = torch.Size(view.get_shape())
                    offsets = torch.Size(map(int, start.split(","))) if start else torch.Size([0] * len(sizes))
                    self.blocks.setdefault(name, []).append(Block(path, key, ChunkStorageMetadata(offsets, sizes)))
                    self._dtypes[name] = _DTYPES[view.get_dtype()]
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{path}: cannot be read: {error}") from error

    def shape(self, name: str) -> torch.Size:
        """Of the whole tensor."""
        places = [block.place for block in self.blocks[name]]
        ends = ([x + n for x, n in zip(place.offsets, place.sizes, strict=True)] for place in places)
        return torch.Size(map(max, zip(*ends, strict=True)))

    def whole(self, name: str) -> Tensor:
        tensor = torch.empty(self.shape(name), dtype=self._dtypes[name])
        for block in self.blocks[name]:
            with safe_open(block.path, framework="pt") as file:
                there = (slice(x, x + n) for x, n in zip(block.place.offsets, block.place.sizes, strict=True))
                tensor[tuple(there)] = file.get_tensor(block.key)
        return tensor

    def metadata(self) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=self._dtypes[name]), self.shape(name), [block.place for block in blocks]
                )
                for name, blocks in self.blocks.items()
            }
        )


def file_name(number: int, count: int) -> str:
    return f"state-{number:05}-of-{count:05}.safetensors"


class Writer(StorageWriter):
    """Writes into a folder; when every process has written, the first one calls `commit`."""

    def __init__(self, folder: Path, commit: Callable[[], None]) -> None:
        self._folder, self._commit = folder, commit

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            self._folder.mkdir()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        names = [file_name(number, len(plans)) for number in range(1, len(plans) + 1)]
        return [replace(plan, storage_data=name) for plan, name in zip(plans, names, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        tensors: dict[str, Tensor] = {}
        for item in plan.items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor)
            assert item.tensor_data is not None
            whole = item.tensor_data.chunk.sizes == item.tensor_data.size
            place = "" if whole else "@" + ",".join(map(str, item.tensor_data.chunk.offsets))
            tensors[item.index.fqn + place] = tensor.detach().contiguous()
        path = self._folder / plan.storage_data
        save_file(tensors, path)
        to_disk(path)
        future: Future[list[WriteResult]] = Future()
        future.set_result([])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._commit()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class Reader(StorageReader):
    def __init__(self, files: Files) -> None:
        self._files = files

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._files.metadata()

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "Future[None]":
        blocks = {(name, block.place.offsets): block for name, blocks in self._files.blocks.items() for block in blocks}
        for item in plan.items:
            block = blocks[item.storage_index.fqn, item.storage_index.offset or torch.Size()]
            with safe_open(block.path, framework="pt") as file:
                view = file.get_slice(block.key)
                wanted = tuple(slice(x, x + n) for x, n in zip(item.storage_offsets, item.lengths, strict=True))
                planner.resolve_tensor(item).copy_(view[wanted] if wanted else file.get_tensor(block.key))
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class SavingPlanner(DefaultSavePlanner):
    """Knows parts."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Any:
        return _block(self.state_dict[index.fqn], index)


class LoadingPlanner(DefaultLoadPlanner):
    """Knows parts, and fills tensors where they are."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return _block(self.state_dict[index.fqn], index)


def _block(held: Tensor | Part, index: MetadataIndex) -> Tensor:
    return held.__get_tensor_shard__(index) if isinstance(held, Part) else held


def to_disk(path: Path) -> None:
    """Return when a file, or a folder's list of files, will survive the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
