"""What attention computes together, and where its rows lie: index tensors, made once for all layers of a step.

Span     a run of one sequence's queries inside one aligned stretch of KEY_TILE positions, so that its rows end at the
         same key tile.
Batch    spans with equally many rows, those with most key tiles first: at each step of the walk over tiles the active
         ones are a prefix.
Row      one query of one head. The G query heads that share a key head are rows of one product; spare rows, up to a
         multiple of ROW_TILE, repeat the last one.
Keys     A step's tiles end, for all of its spans, at the last key that any row sees, rounded up to KEY_PART: what lies
         after it may be left out.
Plan     a pure function of numbers, lengths and block tables by value. The last four are kept: layers ask for the same.
Shapes   B spans   A active spans   R rows of a span   G = Hq / Hkv
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from polyserve_kernels.types import KEY_TILE

ROW_TILE = 4
KEY_PART = 32
_MAX_SCORES = 2**20  # of one step, over all heads: 4 MiB of float32
_MAX_KEY_ELEMENTS = 2**22  # gathered keys of one step: 16 MiB of float32

Locate = Callable[[Tensor, Tensor], Tensor]  # sequences [B, 1], positions [B, L] -> rows [B, L] of the keys and values


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of a layer's attention, as far as plans need it."""

    group: int  # query heads that share a key head
    num_kv: int
    size: int
    window: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """One key tile of each of the first `num_spans` spans of a batch."""

    num_spans: int  # A
    num_keys: int  # of each tile, the first ones, that a row may see
    key_rows: Tensor  # [A, KEY_TILE] int64, of tokens
    positions: Tensor  # [A, 1, KEY_TILE] of the keys
    hidden: Tensor | None  # [A, 1, R, KEY_TILE] bool; None: every key is seen by every row


@dataclass(frozen=True, slots=True)
class Batch:
    query_rows: Tensor  # [B, Hkv, R] int64, among T * Hq rows
    positions: Tensor  # [B, R, 1]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    batches: tuple[Batch, ...]
    result_rows: Tensor  # [T * Hq] int64, among the batches' rows; the one after their last for rows that see no key
    complete: bool  # all rows see a key, and there is a row


@dataclass(frozen=True, slots=True)
class _Span:
    sequence: int
    start: int  # its first token in q
    position: int  # of its first query
    num_tokens: int

    def num_rows(self, heads: Heads) -> int:
        return -(-self.num_tokens * heads.group // ROW_TILE) * ROW_TILE

    def first_tile(self, heads: Heads) -> int:
        return 0 if heads.window is None else max(0, self.position - heads.window + 1) // KEY_TILE

    def num_tiles(self, heads: Heads) -> int:
        return self.position // KEY_TILE + 1 - self.first_tile(heads)


@lru_cache(maxsize=4)
def plan_packed(bounds: tuple[int, ...], heads: Heads, device: torch.device) -> Plan:
    """Sequences whose keys lie where their queries do: sequence s has the tokens bounds[s] to bounds[s + 1]."""
    spans = [span for s in range(len(bounds) - 1) for span in _spans(s, bounds[s], 0, bounds[s + 1] - bounds[s])]
    with torch.inference_mode(False):  # kept plans serve training too
        starts = torch.tensor(bounds, device=device)
        return _plan(spans, bounds[-1], lambda sequences, positions: starts[sequences] + positions, heads, device)


@lru_cache(maxsize=4)
def plan_paged(
    bounds: tuple[int, ...], lens: tuple[int, ...], tables: bytes, block_size: int, heads: Heads, device: torch.device
) -> Plan:
    """Sequences with lens[s] keys in the blocks of `tables` (int32, [S, max_blocks]), whose last tokens are queries."""
    spans = [
        span
        for s, length in enumerate(lens)
        if length
        for span in _spans(s, bounds[s], length - (bounds[s + 1] - bounds[s]), bounds[s + 1] - bounds[s])
    ]
    with torch.inference_mode(False):
        blocks = torch.frombuffer(bytearray(tables), dtype=torch.int32) if tables else torch.empty(0)
        blocks = blocks.view(len(lens), len(blocks) // max(1, len(lens))).long().to(device)  # [S, max_blocks]

        def locate(sequences: Tensor, positions: Tensor) -> Tensor:
            return blocks[sequences, positions // block_size] * block_size + positions % block_size

        return _plan(spans, bounds[-1], locate, heads, device)


def _spans(sequence: int, start: int, position: int, num_tokens: int) -> Iterator[_Span]:
    """Cut the queries of a sequence, from token `start` at `position`, where a key tile ends."""
    while num_tokens > 0:
        taken = min(num_tokens, KEY_TILE - position % KEY_TILE)
        yield _Span(sequence, start, position, taken)
        start, position, num_tokens = start + taken, position + taken, num_tokens - taken


def _plan(spans: list[_Span], num_tokens: int, locate: Locate, heads: Heads, device: torch.device) -> Plan:
    batches = tuple(_batch(batch, locate, heads, device) for batch in _batches(spans, heads))
    no_rows = torch.empty(0, dtype=torch.int64, device=device)
    computed = torch.cat([no_rows, *(batch.query_rows.flatten() for batch in batches)])
    result_rows = torch.full((num_tokens * heads.group * heads.num_kv,), len(computed), device=device)
    result_rows[computed] = torch.arange(len(computed), device=device)
    return Plan(batches, result_rows, complete=bool(batches) and not bool((result_rows == len(computed)).any()))


def _batches(spans: list[_Span], heads: Heads) -> Iterator[list[_Span]]:
    """Spans of one number of rows, the ones with most key tiles first, as many as the bounds on memory allow."""
    batch: list[_Span] = []
    for span in sorted(spans, key=lambda span: (span.num_rows(heads), -span.num_tiles(heads))):
        num_products = (len(batch) + 1) * heads.num_kv
        scores_fit = num_products * span.num_rows(heads) * KEY_TILE <= _MAX_SCORES
        keys_fit = num_products * KEY_TILE * heads.size <= _MAX_KEY_ELEMENTS
        if batch and not (scores_fit and keys_fit and batch[0].num_rows(heads) == span.num_rows(heads)):
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch


def _batch(spans: list[_Span], locate: Locate, heads: Heads, device: torch.device) -> Batch:
    last = torch.tensor([[span.num_tokens * heads.group - 1] for span in spans], device=device)
    rows = torch.minimum(torch.arange(spans[0].num_rows(heads), device=device), last)  # [B, R]
    tokens, members = rows // heads.group, rows % heads.group
    starts = torch.tensor([[span.start] for span in spans], device=device)
    kv_heads = torch.arange(heads.num_kv, device=device)[:, None]  # [Hkv, 1]
    query_rows = ((starts + tokens) * (heads.group * heads.num_kv) + members)[:, None] + kv_heads * heads.group
    positions = torch.tensor([[span.position] for span in spans], device=device) + tokens
    num_tiles = [span.num_tiles(heads) for span in spans]  # descending
    steps = tuple(
        _step(spans[: sum(count > number for count in num_tiles)], number, positions, locate, heads)
        for number in range(num_tiles[0])
    )
    return Batch(query_rows, positions[..., None], steps)


def _step(spans: list[_Span], number: int, positions: Tensor, locate: Locate, heads: Heads) -> Step:
    """Key tile `number`, counted from its first, of each of the spans. positions: [B, R] of the queries."""
    device, positions = positions.device, positions[: len(spans), :, None]  # [A, R, 1]
    tiles = torch.tensor([[span.first_tile(heads) + number] for span in spans], device=device)
    key_positions = tiles * KEY_TILE + torch.arange(KEY_TILE, device=device)  # [A, KEY_TILE]
    distance = key_positions[:, None] - positions  # [A, R, KEY_TILE]
    hidden = distance > 0
    if heads.window is not None:
        hidden |= distance <= -heads.window
    in_reach = torch.minimum(key_positions, positions[:, -1])  # later keys may be unwritten: the last is read instead
    sequences = torch.tensor([[span.sequence] for span in spans], device=device)
    last_seen = int((positions[:, -1] - tiles * KEY_TILE).amax().clamp(max=KEY_TILE - 1))
    return Step(
        num_spans=len(spans),
        num_keys=(last_seen // KEY_PART + 1) * KEY_PART,
        key_rows=locate(sequences, in_reach),
        positions=key_positions[:, None],
        hidden=hidden[:, None] if bool(hidden.any()) else None,
    )
