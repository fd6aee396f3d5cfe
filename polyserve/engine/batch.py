"""The tensors of a Step: what the model is called with.

Rows lie sequence after sequence, and sequences with one new token come first: those go through the decode kernel, the
others through the prefill kernel, and a row gets the same bits from either. Everything is built in numpy in one pass
over the step, without a torch call for each sequence, and then moved to where the cache is.

T new tokens   S sequences   slot = block * block_size + offset
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyserve.engine.grammar import GrammarState
from polyserve.engine.kv_cache import KVCache
from polyserve.engine.logits import TokenEdits
from polyserve.engine.pooler import Pooler
from polyserve.engine.step import Chunk, Step
from polyserve.model.forward_context import PagedContext
from polyserve.sampling_params import SamplingParams


@dataclass(slots=True, eq=False)
class KnownSequence:
    """What the runner keeps of a sequence from step to step."""

    tokens: list[int]
    prompt_len: int
    choice: int
    params: SamplingParams
    edits: TokenEdits | None
    scores_prompt: bool  # log-probabilities of the prompt are wanted and not reported yet
    block_table: list[int]
    pooler: Pooler | None = None
    grammar: GrammarState | None = None
    num_candidates: int = 0  # that a beam may have to choose from; 0: it is none

    def append(self, token_id: int) -> None:
        """Take in the token that comes after those that are known."""
        self.tokens.append(token_id)
        if self.edits is not None:
            self.edits.append(token_id)
        if self.grammar is not None:
            self.grammar.advance([token_id])


@dataclass(frozen=True, slots=True)
class Batch:
    chunks: list[Chunk]  # in the order of the rows
    first_rows: list[int]  # [S + 1], where each chunk's rows begin; then T
    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    awaiting: list[tuple[int, int]]  # (sequence, its row) where the token is not known yet; token_ids has 0 there
    context: PagedContext

    @property
    def only_decodes(self) -> bool:
        return self.context.num_decodes == len(self.chunks)


def make_batch(step: Step, sequences: Mapping[int, KnownSequence], cache: KVCache) -> Batch:
    chunks = sorted(step.chunks, key=lambda chunk: chunk.num_tokens > 1)
    known = [sequences[chunk.seq_id] for chunk in chunks]
    tables = _block_tables([seq.block_table for seq in known])
    lengths = np.array([chunk.num_tokens for chunk in chunks])
    starts = np.array([chunk.start for chunk in chunks])
    first_rows = np.zeros(len(chunks) + 1, dtype=np.int32)
    np.cumsum(lengths, out=first_rows[1:])

    token_ids: list[int] = []
    awaiting: list[tuple[int, int]] = []
    for chunk, seq in zip(chunks, known, strict=True):
        token_ids += seq.tokens[chunk.start : chunk.start + chunk.num_tokens]
        if chunk.start + chunk.num_tokens > len(seq.tokens):
            awaiting.append((chunk.seq_id, len(token_ids)))
            token_ids.append(0)
    row_seqs = np.repeat(np.arange(len(chunks)), lengths)  # [T]
    positions = np.arange(len(row_seqs)) + (starts - first_rows[:-1])[row_seqs]
    blocks, offsets = tables[row_seqs, positions // cache.block_size].astype(np.int64), positions % cache.block_size
    context = PagedContext(
        caches=cache.layers,
        slot_mapping=_moved(blocks * cache.block_size + offsets, cache.device),
        block_tables=_moved(tables, cache.device),
        seq_lens=_moved((starts + lengths).astype(np.int32), cache.device),
        cu_seqlens_q=_moved(first_rows, cache.device),
        num_decodes=int((lengths == 1).sum()),
    )
    return Batch(
        chunks=chunks,
        first_rows=first_rows.tolist(),
        token_ids=_moved(np.array(token_ids, dtype=np.int64), cache.device),
        positions=_moved(positions, cache.device),
        awaiting=awaiting,
        context=context,
    )


def _moved(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


def _block_tables(tables: list[list[int]]) -> "np.ndarray[tuple[int, int], np.dtype[np.int32]]":
    """[S, max_blocks], -1 after each sequence's last block."""
    padded = np.full((len(tables), max(map(len, tables))), -1, dtype=np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    return padded
