"""Decode steps as CUDA graphs: a step's launches recorded once, then replayed as one, since a GPU computes a small step
faster than Python can launch it.

A graph has fixed sizes and reads fixed tensors. A step is copied into those of the next larger size and filled up with
rows that write nowhere (slot -1) and see nothing (length 0): a row's bits do not depend on its company. Graphs are
recorded when a size is first met, so a start does not wait for them.

Shapes  n rows of a step   R rows of a graph, n <= R   W blocks in a row of its block table
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polyserve.engine.batch import Batch
from polyserve.engine.kv_cache import KVCache
from polyserve.model.forward_context import PagedContext

Forward = Callable[
    [Tensor, Tensor, PagedContext], Tensor
]  # the decoder: token ids, positions, context -> hidden states
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]  # launches -> (replay them, their result)

_FIRST_ROWS = (1, 2, 4)  # then every multiple of _ROW_STEP
_ROW_STEP = 8
_FIRST_WIDTH = 16


@dataclass(frozen=True, slots=True)
class _Graph:
    token_ids: Tensor  # [R]
    positions: Tensor  # [R]
    context: PagedContext
    replay: Callable[[], None]
    hidden: Tensor  # [R, C]


class DecodeGraphs:
    def __init__(self, forward: Forward, cache: KVCache, *, capture: Capture | None = None) -> None:
        """capture: how launches are recorded; default: as a CUDA graph."""
        self._forward = forward
        self._cache = cache
        self._capture = capture or _Recorder()
        self._graphs: dict[tuple[int, int], _Graph] = {}  # by R and W

    def run(self, batch: Batch) -> Tensor:
        """Hidden states [n, C] of a batch of decodes alone. They are overwritten by the next run."""
        num_rows, width = batch.context.block_tables.shape
        key = _rows_of_graph(num_rows), _width_of_graph(width)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._record(*key)
        context = graph.context
        graph.token_ids[:num_rows] = batch.token_ids
        graph.positions[:num_rows] = batch.positions
        context.slot_mapping.fill_(-1)
        context.slot_mapping[:num_rows] = batch.context.slot_mapping
        context.seq_lens.zero_()
        context.seq_lens[:num_rows] = batch.context.seq_lens
        context.block_tables[:num_rows, :width] = batch.context.block_tables
        graph.replay()
        return graph.hidden[:num_rows]

    def _record(self, num_rows: int, width: int) -> _Graph:
        device = self._cache.device
        token_ids = torch.zeros(num_rows, dtype=torch.int64, device=device)
        positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
        context = PagedContext(
            caches=self._cache.layers,
            slot_mapping=torch.full((num_rows,), -1, dtype=torch.int64, device=device),
            block_tables=torch.zeros(num_rows, width, dtype=torch.int32, device=device),
            seq_lens=torch.zeros(num_rows, dtype=torch.int32, device=device),
            cu_seqlens_q=torch.arange(num_rows + 1, dtype=torch.int32, device=device),
            num_decodes=num_rows,
        )
        replay, hidden = self._capture(lambda: self._forward(token_ids, positions, context))
        return _Graph(token_ids, positions, context, replay, hidden)


class _Recorder:
    """Records launches as CUDA graphs that share one pool of memory, since only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            compute()  # kernels are compiled and workspaces taken outside the recording
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = compute()
        return graph.replay, hidden


def _rows_of_graph(num_rows: int) -> int:
    return next((size for size in _FIRST_ROWS if size >= num_rows), -(-num_rows // _ROW_STEP) * _ROW_STEP)


def _width_of_graph(width: int) -> int:
    """The next power of two: a longer table costs programs that find nothing to do."""
    return max(_FIRST_WIDTH, 1 << (width - 1).bit_length())
