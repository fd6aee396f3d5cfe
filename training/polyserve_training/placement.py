"""Which elements of a whole tensor a process holds, so that any layout can be filled, saved, and read back as another.

    whole [N, K]     rows a..b, then c..d, ... of it, and of these the columns e..f, lie one below another in this
                     process's tensor. Products of queries, keys and values are cut inside each of the three
A Part is such a tensor; torch's distributed checkpoints save and fill it by three methods, which their protocol names.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


@dataclass(frozen=True, slots=True)
class Placement:
    shape: tuple[int, ...]  # of the whole
    rows: tuple[range, ...]  # of the whole, in this process's order
    columns: range | None = None  # of a matrix; None: all
    copies: int = 1  # processes that hold these very elements

    def within(self, start: int, stop: int) -> "Placement":
        """The placement of rows start..stop of this process's tensor."""
        rows, first = [], 0
        for span in self.rows:
            kept = span[max(start - first, 0) : max(stop - first, 0)]
            rows += [kept] if kept else []
            first += len(span)
        return replace(self, rows=tuple(rows))

    def held_by(self, num_processes: int) -> "Placement":
        """The placement where so many times as many processes hold the same."""
        return replace(self, copies=self.copies * num_processes)

    def of(self, whole: Tensor) -> Tensor:
        """This process's elements."""
        rows = [whole[span.start : span.stop] for span in self.rows]
        mine = torch.cat(rows) if rows else whole[:0]
        return mine if self.columns is None else mine[:, self.columns.start : self.columns.stop]

    def blocks(self) -> Iterator[tuple[ChunkStorageMetadata, slice]]:
        """Each block's place in the whole, and its rows here."""
        first = 0
        for span in self.rows:
            offsets, sizes = [0] * len(self.shape), list(self.shape)
            offsets[0], sizes[0] = span.start, len(span)
            if self.columns is not None:
                offsets[1], sizes[1] = self.columns.start, len(self.columns)
            yield ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)), slice(first, first + len(span))
            first += len(span)


@dataclass(frozen=True, slots=True)
class Part:
    tensor: Tensor
    placement: Placement

    def size(self) -> torch.Size:
        return torch.Size(self.placement.shape)

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.tensor)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk, _ in self.placement.blocks()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [chunk for chunk, _ in self.placement.blocks()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return next(self.tensor[rows] for chunk, rows in self.placement.blocks() if chunk.offsets == index.offset)
