"""Causal attention, packed or paged, such that a row's bits depend on its own query, keys and values alone.

How      Keys go in tiles of KEY_TILE at absolute positions. Each tile gives a partial (maximum m, sum l, output o), and
         partials are folded in ascending order by `merge_states`; a tile in which a row sees no key leaves the row's
         state exactly as it is. A plain product has ROW_TILE rows and a whole tile of keys; more rows, or fewer keys
         where nobody sees the last ones, take its place where a trial of that very shape gave the same bits. Bits
         change with where a row begins in memory, so heads are filled up to 16 bytes. Packed, prefill and decode
         differ only in where rows lie, which `attention_plan` works out.
Shapes   P products, one for each span and key head   R rows of a product   n keys of a tile, at most KEY_TILE
         A active spans   q [T, Hq, D]   stored keys and values [N, Hkv, D]   rows in the order of their batches [X]
Source   https://arxiv.org/abs/2205.14135; folding partials: Flash-Decoding (Dao et al., 2023)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from polyserve_kernels.reference.attention_plan import ROW_TILE, Batch, Heads, Plan, Step, plan_packed, plan_paged
from polyserve_kernels.reference.kv_cache import as_bytes
from polyserve_kernels.types import KEY_TILE, BlockCache, Scoring

_ALIGNED = 4  # elements of float32
_LOWEST = torch.finfo(torch.float32).min  # in place of -inf, so that a difference of maxima is never nan

State = tuple[Tensor, Tensor, Tensor]  # m [P, R, 1], l [P, R, 1], o [P, R, D]
Product = Callable[[Tensor, Tensor], Tensor]  # a [P, R, X], b [P, X, Y] -> a b [P, R, Y]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Keys or values [N, Hkv, D], and what the numbers of a head are multiplied with, [N, Hkv], if anything."""

    stored: Tensor
    scales: Tensor | None = None

    def take(self, rows: Tensor) -> Tensor:
        """Tokens [A, n] as float32, head after head: [A * Hkv, n, D]."""
        order = rows.flatten()
        if self.scales is None:
            taken = self._by_head(self.stored.index_select(0, order), rows)
        else:
            numbers = as_bytes(self.stored).index_select(0, order).view(self.stored.dtype)
            taken = self._by_head(numbers, rows) * self._by_head(self.scales.index_select(0, order), rows)[..., None]
        return _aligned(taken.flatten(0, 1))

    def _by_head(self, x: Tensor, rows: Tensor) -> Tensor:
        """x [A * n, Hkv, ...] as float32 [A, Hkv, n, ...], in one pass."""
        by_head = x.view(*rows.shape, *x.shape[1:]).transpose(1, 2)
        return by_head.to(torch.float32, memory_format=torch.contiguous_format)


def attention_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    heads = Heads(q.shape[1] // k.shape[1], k.shape[1], q.shape[2], scoring.window)
    plan = plan_packed(tuple(cu_seqlens.tolist()), heads, q.device)
    states = _attend(q, _Tokens(k.contiguous()), _Tokens(v.contiguous()), plan, scoring)
    return _results(states, plan, q), _log_sum_exps(states, plan, q)


def paged_prefill(
    q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor, cu_seqlens_q: Tensor, scoring: Scoring
) -> Tensor:
    block_size, kv_heads, head_size = cache.k.shape[1:]
    heads = Heads(q.shape[1] // kv_heads, kv_heads, head_size, scoring.window)
    tables = block_tables.cpu().numpy().tobytes()
    plan = plan_paged(tuple(cu_seqlens_q.tolist()), tuple(seq_lens.tolist()), tables, block_size, heads, q.device)
    k, v = (
        _Tokens(stored.flatten(0, 1), None if scales is None else scales.flatten(0, 1))
        for stored, scales in ((cache.k, cache.k_scales), (cache.v, cache.v_scales))
    )
    return _results(_attend(q, k, v, plan, scoring), plan, q)


def paged_decode(q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor, scoring: Scoring) -> Tensor:
    return paged_prefill(q, cache, block_tables, seq_lens, torch.arange(len(q) + 1), scoring)


def merge_states(a: State, b: State) -> State:
    """The state over the keys of both. If b saw no key (l = 0, m lowest), it is exactly a."""
    m = torch.maximum(a[0], b[0])
    weight_a, weight_b = torch.exp(a[0] - m), torch.exp(b[0] - m)
    return m, a[1] * weight_a + b[1] * weight_b, a[2] * weight_a + b[2] * weight_b


def _attend(q: Tensor, k: _Tokens, v: _Tokens, plan: Plan, scoring: Scoring) -> list[State]:
    q_rows = q.reshape(-1, q.shape[2])
    return [_attend_batch(q_rows, k, v, batch, scoring) for batch in plan.batches]


def _results(states: list[State], plan: Plan, q: Tensor) -> Tensor:
    """[T, Hq, D] in q's dtype; 0 where a row sees no key."""
    head_size = q.shape[2]
    parts = [(o / total).flatten(0, 1)[:, :head_size] for _, total, o in states]
    return _in_order(parts, q.new_zeros(1, head_size, dtype=torch.float32), plan).to(q.dtype).view(q.shape)


def _log_sum_exps(states: list[State], plan: Plan, q: Tensor) -> Tensor:
    """[T, Hq] float32, of each row's scores; -inf where it sees no key."""
    parts = [(m + torch.log(total.detach())).flatten() for m, total, _ in states]
    return _in_order(parts, q.new_full((1,), -torch.inf, dtype=torch.float32), plan).view(q.shape[:2])


def _in_order(parts: list[Tensor], nothing: Tensor, plan: Plan) -> Tensor:
    """Rows as they lie in q, those that see no key with `nothing`. parts: the batches' rows [X, ...]."""
    rows = parts if plan.complete else [*parts, nothing]
    return (rows[0] if len(rows) == 1 else torch.cat(rows)).index_select(0, plan.result_rows)


def _attend_batch(q_rows: Tensor, k: _Tokens, v: _Tokens, batch: Batch, scoring: Scoring) -> State:
    num_spans, kv_heads, num_rows = batch.query_rows.shape
    q = _aligned(q_rows.index_select(0, batch.query_rows.view(-1)).float())
    q = q.view(num_spans * kv_heads, num_rows, -1)
    slopes = None
    if scoring.alibi_slopes is not None:
        slopes = scoring.alibi_slopes[batch.query_rows % len(scoring.alibi_slopes)][..., None]  # [B, Hkv, R, 1]
    state: State | None = None
    for step in batch.steps:
        num_keys, product = _ways(num_rows, step.num_keys, q.shape[2])
        keys, values = k.take(step.key_rows[:, :num_keys]), v.take(step.key_rows[:, :num_keys])
        scores = product(q[: len(keys)], keys.transpose(1, 2)).mul_(scoring.scale)
        if scoring.soft_cap is not None:
            scores = scoring.soft_cap * torch.tanh(scores / scoring.soft_cap)
        scores = _by_position(scores, batch, step, slopes)
        state = _fold(state, _partial(scores, values, product))
    assert state is not None
    return state


def _by_position(scores: Tensor, batch: Batch, step: Step, slopes: Tensor | None) -> Tensor:
    """scores [P, R, n], which are used up, with ALiBi added, and -inf where a row does not see a key."""
    if slopes is None and step.hidden is None:
        return scores
    num_keys = scores.shape[2]
    by_span = scores.view(step.num_spans, -1, *scores.shape[1:])  # [A, Hkv, R, n]
    if slopes is not None:
        distance = (step.positions[..., :num_keys] - batch.positions[: step.num_spans]).float()  # [A, R, n]
        by_span = by_span + slopes[: step.num_spans] * distance[:, None]
    if step.hidden is not None:
        by_span = by_span.masked_fill_(step.hidden[..., :num_keys], -torch.inf)
    return by_span.view(scores.shape)


def _partial(scores: Tensor, v: Tensor, product: Product) -> State:
    """The state over one tile's keys. scores [P, R, n], which are used up; v [P, n, D]."""
    m = scores.detach().amax(-1, keepdim=True).clamp(min=_LOWEST)  # only a shift: no gradient passes through it
    p = scores.sub_(m).exp_()
    return m, p.sum(-1, keepdim=True), product(p, v)


def _fold(state: State | None, partial: State) -> State:
    """The state with the partial of the next tile, which only the first products may have."""
    if state is None:
        return partial
    num_active = len(partial[0])
    if num_active == len(state[0]):
        return merge_states(state, partial)
    active, done = zip(*((x[:num_active], x[num_active:]) for x in state), strict=True)
    m, total, o = (torch.cat(pair) for pair in zip(merge_states(active, partial), done, strict=True))
    return m, total, o


def _aligned(x: Tensor) -> Tensor:
    """x [..., D] with zeros after D elements to a multiple of 16 bytes."""
    spare = -x.shape[-1] % _ALIGNED
    return F.pad(x, (0, spare)) if spare else x


def _ways(num_rows: int, num_keys: int, head_size: int) -> tuple[int, Product]:
    """How many keys of a tile to compute with, where only the first num_keys are seen, and how to multiply."""
    threads = torch.get_num_threads()
    if _same_bits(num_rows, num_keys, head_size, threads):
        return num_keys, _product
    return KEY_TILE, _product if _same_bits(num_rows, KEY_TILE, head_size, threads) else _product_in_tiles


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a [P, R, X] times b [P, X, Y]. Always of two matrices or more: one alone torch may cut up among threads."""
    if len(a) == 1:
        return torch.bmm(a.expand(2, -1, -1), b.expand(2, -1, -1))[:1]
    return torch.bmm(a, b)


def _product_in_tiles(a: Tensor, b: Tensor) -> Tensor:
    """The same in plain products of ROW_TILE rows."""
    tiles = a.reshape(len(a), -1, ROW_TILE, a.shape[2]).unbind(1)
    return torch.cat([_product(tile, b) for tile in tiles], dim=1)


@lru_cache(maxsize=4096)
def _same_bits(
    num_rows: int,
    num_keys: int,
    head_size: int,
    threads: int,  # noqa: ARG001  (part of the cache's key: a product may be cut differently)
) -> bool:
    """Whether so many rows and keys at once give the same bits as plain products: tried on random numbers."""
    if num_rows == ROW_TILE and num_keys == KEY_TILE:
        return True
    numbers = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, head_size, generator=numbers) for n in (num_rows, KEY_TILE, KEY_TILE))
    hidden = torch.arange(KEY_TILE) >= num_keys
    plain_scores = _product_in_tiles(q, k.transpose(1, 2)).masked_fill(hidden, -torch.inf)
    plain = _partial(plain_scores, v, _product_in_tiles)
    seen_k, seen_v = k[:, :num_keys].contiguous(), v[:, :num_keys].contiguous()
    tried = _partial(_product(q, seen_k.transpose(1, 2)), seen_v, _product)
    return all(torch.equal(a, b) for a, b in zip(tried, plain, strict=True))
