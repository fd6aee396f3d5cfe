"""Causal attention, packed or paged, such that a row's bits depend on its own query, keys and values alone.

How      Keys go in tiles of KEY_TILE at absolute positions. Each tile gives a partial (maximum m, sum l, output o), and partials are folded
         in ascending order by `merge_states`; a tile in which a row sees no key leaves the row's state exactly as it is. Every product
         has one fixed shape, ROW_TILE rows by KEY_TILE keys: a row of it is one query of one head, and the query heads that share a key
         head lie in one tile. Packed, prefill and decode differ only in where key rows lie.
Work     A Span is a run of one sequence's queries inside one aligned stretch of KEY_TILE positions, so its rows end at the same tile.
         Spans of equal size are computed together.
Shapes   B spans   R rows of a span   G = Hq / Hkv   q [T, Hq, D]   key and value rows [N, Hkv, D]
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

KEY_TILE = 128
ROW_TILE = 8
_MAX_ROWS = 8192  # query rows, over all heads, that are computed together: bounds the scores at 4 MiB
_MAX_KEY_ELEMENTS = 2**22  # gathered keys of one tile step: 16 MiB
_LOWEST = torch.finfo(torch.float32).min  # stands for -inf, so that differences of maxima are never nan

Locate = Callable[[Tensor, Tensor], Tensor]  # sequences [B, 1], positions [B, L] -> rows [B, L] of the keys and values
State = tuple[Tensor, Tensor, Tensor]  # m [..., R], l [..., R], o [..., R, D]


@dataclass(frozen=True, slots=True)
class Options:
    scale: float
    alibi_slopes: Tensor | None
    window: int | None
    soft_cap: float | None


@dataclass(frozen=True, slots=True)
class Span:
    sequence: int
    start: int  # its first row in q
    position: int  # of its first query
    num_tokens: int

    @property
    def last_tile(self) -> int:
        return self.position // KEY_TILE

    def first_tile(self, window: int | None) -> int:
        return 0 if window is None else max(0, self.position - window + 1) // KEY_TILE


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float,
    alibi_slopes: Tensor | None,
    window: int | None,
    soft_cap: float | None,
) -> Tensor:
    bounds = cu_seqlens.tolist()
    spans = [s for i, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)) for s in _spans(i, start, 0, end - start)]
    starts = cu_seqlens.long()
    return _attend(q, k, v, spans, lambda sequences, positions: starts[sequences] + positions, Options(scale, alibi_slopes, window, soft_cap))


def paged_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    *,
    scale: float,
    alibi_slopes: Tensor | None,
    window: int | None,
    soft_cap: float | None,
) -> Tensor:
    bounds, lens = cu_seqlens_q.tolist(), seq_lens.tolist()
    spans = [
        span
        for i, (start, end, length) in enumerate(zip(bounds, bounds[1:], lens, strict=False))
        for span in _spans(i, start, length - (end - start), end - start)
    ]
    return _attend_paged(q, k_cache, v_cache, block_tables, spans, Options(scale, alibi_slopes, window, soft_cap))


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    alibi_slopes: Tensor | None,
    window: int | None,
    soft_cap: float | None,
) -> Tensor:
    spans = [Span(i, i, length - 1, 1) for i, length in enumerate(seq_lens.tolist()) if length > 0]
    return _attend_paged(q, k_cache, v_cache, block_tables, spans, Options(scale, alibi_slopes, window, soft_cap))


def merge_states(a: State, b: State) -> State:
    """The state of the keys of both. With b over no visible key (l = 0, m lowest) it is exactly a."""
    m = torch.maximum(a[0], b[0])
    scale_a, scale_b = torch.exp(a[0] - m), torch.exp(b[0] - m)
    return m, a[1] * scale_a + b[1] * scale_b, a[2] * scale_a[..., None] + b[2] * scale_b[..., None]


def _spans(sequence: int, start: int, position: int, num_tokens: int) -> Iterator[Span]:
    """Cut the queries of a sequence, from row `start` at `position`, where a key tile ends."""
    while num_tokens > 0:
        taken = min(num_tokens, KEY_TILE - position % KEY_TILE)
        yield Span(sequence, start, position, taken)
        start, position, num_tokens = start + taken, position + taken, num_tokens - taken


def _attend_paged(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, spans: list[Span], options: Options) -> Tensor:
    size, tables = k_cache.shape[1], block_tables.long()

    def locate(sequences: Tensor, positions: Tensor) -> Tensor:
        return tables[sequences, positions // size] * size + positions % size

    return _attend(q, k_cache.flatten(0, 1), v_cache.flatten(0, 1), spans, locate, options)


def _attend(q: Tensor, k: Tensor, v: Tensor, spans: list[Span], locate: Locate, options: Options) -> Tensor:
    num_tokens, num_heads, head_size = q.shape
    group = num_heads // k.shape[1]
    q_rows = q.reshape(-1, head_size)
    where, outputs = [], []  # of the rows computed: [B, Hkv, R] rows of q_rows, and their results
    for batch in _batches(spans, group, k.shape[1], head_size, options.window):
        index, positions = _query_rows(batch, group, k.shape[1], q.device)
        rows = q_rows.index_select(0, index.flatten()).float().view(*index.shape, head_size) * options.scale
        slopes = None if options.alibi_slopes is None else options.alibi_slopes[index % num_heads]
        outputs.append(_attend_batch(rows, positions, slopes, k, v, batch, locate, options).flatten(0, 2))
        where.append(index.flatten())
    outputs.append(torch.zeros(1, head_size, device=q.device))  # for rows that see nothing
    source = torch.full((num_tokens * num_heads,), -1, device=q.device)
    computed = torch.cat(outputs)
    if where:
        source[torch.cat(where)] = torch.arange(len(computed) - 1, device=q.device)
    return computed[source].to(q.dtype).view(q.shape)


def _batches(spans: list[Span], group: int, kv_heads: int, head_size: int, window: int | None) -> Iterator[list[Span]]:
    """Spans of one padded size, the ones with most key tiles first, as many as memory bounds allow."""

    def size(span: Span) -> int:
        return -(-span.num_tokens * group // ROW_TILE)

    def order(span: Span) -> tuple[int, int]:
        return size(span), span.first_tile(window) - span.last_tile

    batch: list[Span] = []
    for span in sorted(spans, key=order):
        fits = (len(batch) + 1) * kv_heads * max(size(span) * ROW_TILE * 512, KEY_TILE * head_size) <= _MAX_KEY_ELEMENTS
        if batch and not (fits and size(batch[0]) == size(span)):
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch


def _query_rows(batch: list[Span], group: int, kv_heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each row of each span: where it lies among T * Hq rows [B, Hkv, R], and its position [B, R]. Spare rows repeat the last one."""
    num_rows = -(-batch[0].num_tokens * group // ROW_TILE) * ROW_TILE
    rows = torch.arange(num_rows, device=device)
    last = torch.tensor([[span.num_tokens * group - 1] for span in batch], device=device)
    rows = torch.minimum(rows, last)  # [B, R]: query * G + member of the group
    tokens, members = rows // group, rows % group
    starts = torch.tensor([[span.start, span.position] for span in batch], device=device)
    heads = torch.arange(kv_heads, device=device)[:, None] * group  # [Hkv, 1]
    index = ((starts[:, :1] + tokens) * (group * kv_heads) + members)[:, None] + heads
    return index, starts[:, 1:] + tokens


def _attend_batch(q: Tensor, positions: Tensor, slopes: Tensor | None, k: Tensor, v: Tensor, batch: list[Span], locate: Locate, options: Options) -> Tensor:
    """q [B, Hkv, R, D], scaled; positions [B, R]. Returns [B, Hkv, R, D]."""
    device, kv_heads, head_size = q.device, k.shape[1], k.shape[2]
    counts = [span.last_tile + 1 - span.first_tile(options.window) for span in batch]  # descending
    firsts = torch.tensor([[span.first_tile(options.window)] for span in batch], device=device)
    sequences = torch.tensor([[span.sequence] for span in batch], device=device)
    heads = torch.arange(kv_heads, device=device)[:, None]
    k_rows, v_rows = k.reshape(-1, head_size), v.reshape(-1, head_size)
    offsets = torch.arange(KEY_TILE, device=device)
    state: State | None = None
    for step in range(counts[0]):
        active = sum(count > step for count in counts)
        key_positions = (firsts[:active] + step) * KEY_TILE + offsets  # [A, KEY_TILE]
        in_reach = torch.minimum(key_positions, positions[:active, -1:])  # later keys may be unwritten: repeat the last one instead
        index = (locate(sequences[:active], in_reach)[:, None] * kv_heads + heads).flatten()
        tile_k = k_rows.index_select(0, index).float().view(-1, KEY_TILE, head_size)
        tile_v = v_rows.index_select(0, index).float().view(-1, KEY_TILE, head_size)
        partial = _tile_state(q[:active], tile_k, tile_v, positions[:active], key_positions, slopes, options)
        if state is None:
            state = partial
            continue
        merged = merge_states((state[0][:active], state[1][:active], state[2][:active]), partial)
        state = merged if active == len(batch) else tuple(torch.cat((new, old[active:])) for new, old in zip(merged, state, strict=True))
    assert state is not None
    return state[2] / state[1][..., None] + 0.0  # + 0: one sign of zero, whichever tiles a row passed through


def _tile_state(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, key_positions: Tensor, slopes: Tensor | None, options: Options) -> State:
    """The partial of one key tile for each span. q [A, Hkv, R, D]; k, v [A * Hkv, KEY_TILE, D]; positions [A, R]; key_positions [A, KEY_TILE]."""
    num_spans, kv_heads, num_rows, head_size = q.shape
    scores = _products(q.reshape(-1, num_rows, head_size), k.transpose(1, 2)).view(num_spans, kv_heads, num_rows, KEY_TILE)
    if options.soft_cap is not None:
        scores = options.soft_cap * torch.tanh(scores / options.soft_cap)
    distance = key_positions[:, None] - positions[..., None]  # [A, R, KEY_TILE], 0 or less where visible
    if slopes is not None:
        scores = scores + slopes[:num_spans, ..., None] * distance[:, None]
    hidden = distance > 0
    if options.window is not None:
        hidden = hidden | (distance <= -options.window)
    scores = scores.masked_fill(hidden[:, None], -torch.inf)
    m = scores.amax(-1).clamp(min=_LOWEST)
    p = torch.exp(scores - m[..., None])
    o = _products(p.view(-1, num_rows, KEY_TILE), v).view(num_spans, kv_heads, num_rows, head_size)
    return m, p.sum(-1), o


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a [B, R, X] times b [B, X, Y], as products of ROW_TILE rows each."""
    num_rows = a.shape[1]
    if num_rows == ROW_TILE:
        return torch.bmm(a, b)
    tiles = a.view(len(a), -1, ROW_TILE, a.shape[2])
    return torch.stack([torch.bmm(x, y.expand(len(x), -1, -1)) for x, y in zip(tiles, b, strict=True)]).flatten(1, 2)
