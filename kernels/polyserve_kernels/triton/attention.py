"""Causal attention, packed or of many queries a sequence against the paged cache, without ever holding the scores.

How      A program takes a tile of rows of one sequence and one key head, and walks the key tiles that its rows see, in
         ascending order. Key tiles lie at absolute positions, and what a tile gives is folded into the rows' state by
         the same expressions as in attention_decode.py, so that a token has one result, packed, prefilled or decoded
Split    programs may also share the walk: program i of n takes the key tiles i, i + n, ... and stores what each gives;
         attention_decode.py folds
Rows     the `group` query heads that share a key head lie in one tile: row r is token r // group, head r % group.
         Sequence s owns the tiles from bounds[s] * group // BLOCK_M + s on: room for all its rows, known from shapes
Wide     heads of a multiple of 128 elements give programs that compute 128 elements each; scores are computed for each
Spec     reference/attention.py    Source  https://arxiv.org/abs/2205.14135
Traffic  q and out once, k and v once for each tile of rows that sees them (from L2 where tiles run together)
Shapes   q, out [T, Hq, D]   k, v [T, Hkv, D], or a cache [num_blocks, block_size, Hkv, D]   lse [T, Hq]
"""

from dataclasses import dataclass
from math import log2

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.attention_tile import (
    LN2,
    LOG2E,
    LOWEST,
    find_keys,
    finished,
    head_parts,
    load_rows,
    merge_maxima,
    merge_sums,
    tile_output,
    tile_weights,
)
from polyserve_kernels.triton.launch import architecture, launch
from polyserve_kernels.triton.tuning import attention_tuning
from polyserve_kernels.types import BlockCache, Scoring

_V_SPAN = 128  # elements of a value that one program computes


@triton.jit
def _first_tile(bounds_ptr, sequence, group, BLOCK_M: tl.constexpr):
    return tl.load(bounds_ptr + sequence) * group // BLOCK_M + sequence


@triton.jit
def find_rows(bounds_ptr, tile, num_seqs, group, BLOCK_M: tl.constexpr):
    """A tile's sequence, its first token, its number of tokens, and which of its rows the tile begins with, maybe none.

    bounds_ptr: None where each sequence has one token.
    """
    if bounds_ptr is None:
        tiles_each = tl.cdiv(group, BLOCK_M)
        sequence = tile // tiles_each
        start, num_tokens = sequence, 1
        first_row = tile % tiles_each * BLOCK_M
    else:
        sequence, after = 0, num_seqs
        while sequence + 1 < after:
            middle = (sequence + after) // 2
            if _first_tile(bounds_ptr, middle, group, BLOCK_M) <= tile:
                sequence = middle
            else:
                after = middle
        start = tl.load(bounds_ptr + sequence)
        num_tokens = tl.load(bounds_ptr + sequence + 1) - start
        first_row = (tile - _first_tile(bounds_ptr, sequence, group, BLOCK_M)) * BLOCK_M
    return sequence, start, num_tokens, first_row


@triton.jit
def place_rows(first_row, start, num_tokens, num_keys, kv_head, group, BLOCK_M: tl.constexpr):
    """Of a tile's rows: the token, the query head, the position (-1: no such row), and whether there is such a row."""
    rows = first_row + tl.arange(0, BLOCK_M)
    exist = rows < num_tokens * group
    q_pos = tl.where(exist, num_keys - num_tokens + rows // group, -1)
    return (start + rows // group).to(tl.int64), kv_head * group + rows % group, q_pos, exist


@triton.jit
def find_key_tiles(first_pos, last_pos, window, BLOCK_N: tl.constexpr):
    """The first key tile that queries at these positions see, and the one after the last."""
    first = 0
    if window is not None:
        first = tl.maximum(first_pos - window + 1, 0) // BLOCK_N
    return first, tl.cdiv(last_pos + 1, BLOCK_N)


@triton.jit
def all_seen(key_tile, first_pos, last_pos, window, BLOCK_N: tl.constexpr):
    """Whether queries at these positions see every key of a tile."""
    seen = (key_tile + 1) * BLOCK_N <= first_pos + 1
    if window is not None:
        seen = seen & (key_tile * BLOCK_N > last_pos - window)
    return seen


@triton.jit
def _fold_heads(o, weight, weight_tile, p, v_ptr, rows, there, v_stride, span_size, parts):
    """o, part by part, with what one more tile of keys gives."""
    folded = ()
    for i in tl.static_range(len(parts)):
        o_tile = tile_output(p, v_ptr, rows, there, v_stride, span_size, parts[i][0], parts[i][1])
        folded += (merge_sums(o[i], weight[:, None], o_tile, weight_tile[:, None]),)
    return folded


@triton.jit
def _store_heads(
    ptr, rows, exist, o, total, span, D: tl.constexpr, V_SPAN: tl.constexpr, FROM: tl.constexpr, SIZE: tl.constexpr
):
    """Elements FROM to FROM + SIZE of a span of rows [.., D]: o, or with a total the result that it is."""
    d = FROM + tl.arange(0, SIZE)[None, :]
    if total is not None:
        o = finished(o, total[:, None], ptr.dtype.element_ty)
    tl.store(ptr + rows[:, None] * D + span * V_SPAN + d, o, mask=exist[:, None] & (d < V_SPAN))


@triton.jit(do_not_specialize=["num_seqs", "num_blocks", "max_blocks", "max_tiles", "table_stride"])
def _attend_kernel(
    q_ptr, k_ptr, v_ptr, k_scales_ptr, v_scales_ptr, slopes_ptr, bounds_ptr, lens_ptr, tables_ptr,
    out_ptr, lse_ptr, partial_m_ptr, partial_total_ptr, partial_o_ptr,
    num_seqs, num_heads, group, num_blocks, max_blocks, max_tiles, scale, cap, window,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, table_stride,
    BLOCK_SIZE: tl.constexpr, D: tl.constexpr, V_SPAN: tl.constexpr, K_PARTS: tl.constexpr, V_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Writes out and lse (None: not wanted), or partials where there are several splits."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # a sequence's last rows see the most keys: they start first
    kv_head, span, split = tl.program_id(1).to(tl.int64), tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    sequence, start, num_tokens, first_row = find_rows(bounds_ptr, tile, num_seqs, group, BLOCK_M)
    if first_row >= num_tokens * group:
        return
    num_keys = num_tokens
    if tables_ptr is not None:
        num_keys = tl.minimum(tl.load(lens_ptr + sequence), max_blocks * BLOCK_SIZE)
        tables_ptr += tl.cast(sequence, tl.int64) * table_stride
    tokens, heads, q_pos, exist = place_rows(first_row, start, num_tokens, num_keys, kv_head, group, BLOCK_M)
    first_pos = num_keys - num_tokens + first_row // group
    last_pos = num_keys - num_tokens + (tl.minimum(first_row + BLOCK_M, num_tokens * group) - 1) // group
    first, end = find_key_tiles(first_pos, last_pos, window, BLOCK_N)
    if first + split >= end and SPLITS > 1:
        return

    dtype: tl.constexpr = q_ptr.dtype.element_ty
    q_offsets = tokens * q_stride + heads * q_head_stride
    q = [load_rows(q_ptr, q_offsets, exist, dtype, D, part[0], part[1]) for part in K_PARTS]
    slopes = None
    if slopes_ptr is not None:
        slopes = (tl.load(slopes_ptr + heads, mask=exist, other=0.0) * LOG2E)[:, None]
    k_ptr += kv_head * k_head_stride
    v_ptr += kv_head * v_head_stride + span * V_SPAN
    if k_scales_ptr is not None:
        k_scales_ptr += kv_head
        v_scales_ptr += kv_head

    rows = tokens * num_heads + heads
    m = tl.full((BLOCK_M,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    o = [tl.zeros((BLOCK_M, part[1]), tl.float32) for part in V_PARTS]
    for key_tile in range(first + split, end, SPLITS):
        k_pos = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        k_rows, there = find_keys(k_pos, start, num_keys, tables_ptr, num_blocks, BLOCK_SIZE)
        m_tile, total_tile, p = tile_weights(
            q, q_pos, slopes, k_ptr, k_scales_ptr, v_scales_ptr, k_rows, there, k_pos,
            all_seen(key_tile, first_pos, last_pos, window, BLOCK_N),
            k_stride, num_heads // group, scale, cap, window, D, K_PARTS,
        )  # fmt: skip
        if SPLITS == 1:
            m, weight, weight_tile = merge_maxima(m, m_tile)
            total = merge_sums(total, weight, total_tile, weight_tile)
            o = _fold_heads(o, weight, weight_tile, p, v_ptr, k_rows, there, v_stride, V_SPAN, V_PARTS)
        else:
            partials = rows * max_tiles + (key_tile - first)
            if span == 0:
                tl.store(partial_m_ptr + partials, m_tile, mask=exist)
                tl.store(partial_total_ptr + partials, total_tile, mask=exist)
            for i in tl.static_range(len(V_PARTS)):
                o_tile = tile_output(p, v_ptr, k_rows, there, v_stride, V_SPAN, V_PARTS[i][0], V_PARTS[i][1])
                _store_heads(
                    partial_o_ptr, partials, exist, o_tile, None, span, D, V_SPAN, V_PARTS[i][0], V_PARTS[i][1]
                )

    if SPLITS == 1:
        for i in tl.static_range(len(V_PARTS)):
            _store_heads(out_ptr, rows, exist, o[i], total, span, D, V_SPAN, V_PARTS[i][0], V_PARTS[i][1])
        if lse_ptr is not None and span == 0:
            tl.store(lse_ptr + rows, (m + tl.log2(total)) * LN2, mask=exist)


@dataclass(frozen=True, slots=True)
class Keys:
    """What is attended to: keys and values [T, Hkv, D] where the queries lie, or a cache."""

    k: Tensor
    v: Tensor
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None
    tables: Tensor | None = None  # [S, max_blocks]; None: packed
    lens: Tensor | None = None  # [S]

    @property
    def block_size(self) -> int:
        return 0 if self.tables is None else self.k.shape[1]

    @property
    def max_blocks(self) -> int:
        return 0 if self.tables is None else self.tables.shape[1]

    @property
    def strides(self) -> tuple[int, int, int, int, int]:
        """Of a token and a head of keys, of values, and of a table's row."""
        table_stride = 0 if self.tables is None else self.tables.stride(0)
        return self.k.stride(-3), self.k.stride(-2), self.v.stride(-3), self.v.stride(-2), table_stride


def paged_keys(cache: BlockCache, block_tables: Tensor, seq_lens: Tensor) -> Keys:
    tables = block_tables if block_tables.stride(-1) == 1 else block_tables.contiguous()
    return Keys(cache.k, cache.v, cache.k_scales, cache.v_scales, tables, seq_lens.contiguous())


def in_powers_of_two(scoring: Scoring) -> tuple[float, float | None, int | None]:
    """Scale, cap and window as `score_tile` takes them, for scores that are exponents of 2."""
    unit = log2(torch.e)
    if scoring.soft_cap is None:
        return scoring.scale * unit, None, scoring.window
    return scoring.scale / scoring.soft_cap, scoring.soft_cap * unit, scoring.window


def v_span(head_size: int) -> int:
    return _V_SPAN if head_size % _V_SPAN == 0 else head_size


@dataclass(frozen=True, slots=True)
class Partials:
    """What the key tiles of each row gave, in ascending order from the first that it sees."""

    m: Tensor  # [T, Hq, tiles] float32
    total: Tensor  # [T, Hq, tiles] float32
    o: Tensor  # [T, Hq, tiles, D] float32
    splits: int  # programs that share a row's tiles


def attend(
    q: Tensor, keys: Keys, bounds: Tensor | None, scoring: Scoring, results: tuple[Tensor, Tensor | None] | Partials
) -> None:
    """Writes the results, out and lse, or the partials.  bounds: of the sequences; None: each has one row of q."""
    num_tokens, num_heads, head_size = q.shape
    kv_heads = keys.k.shape[-2]
    group, num_seqs = num_heads // kv_heads, num_tokens if bounds is None else bounds.shape[0] - 1
    tuning = attention_tuning(architecture(q.device), head_size, q.dtype)
    rows = tuning.prefill if bounds is not None else tuning.decode
    if bounds is None:
        row_tiles = num_seqs * triton.cdiv(group, rows.block_m)
    else:
        row_tiles = num_tokens * group // rows.block_m + num_seqs
    partials = results if isinstance(results, Partials) else None
    out, lse = (None, None) if isinstance(results, Partials) else results
    splits, span = partials.splits if partials else 1, v_span(head_size)
    launch(
        _attend_kernel, (row_tiles, kv_heads, head_size // span * splits),
        q, keys.k, keys.v, keys.k_scales, keys.v_scales, scoring.alibi_slopes, bounds, keys.lens, keys.tables,
        out, lse, *((partials.m, partials.total, partials.o) if partials else (None, None, None)),
        num_seqs, num_heads, group, keys.k.shape[0], keys.max_blocks, partials.m.shape[2] if partials else 1,
        *in_powers_of_two(scoring), q.stride(0), q.stride(1), *keys.strides,
        BLOCK_SIZE=keys.block_size, D=head_size, V_SPAN=span,
        K_PARTS=head_parts(head_size, rows.key_part), V_PARTS=head_parts(span, rows.value_part),
        BLOCK_M=rows.block_m, BLOCK_N=tuning.block_n, SPLITS=splits,
        maxnreg=rows.max_registers, num_warps=rows.num_warps,
        num_stages=tuning.num_stages if keys.tables is None else tuning.num_stages + 1,
    )  # fmt: skip


def attention_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    attend(q, Keys(k, v), cu_seqlens.contiguous(), scoring, (out, lse))
    return out, lse


def paged_prefill(
    q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor, cu_seqlens_q: Tensor, scoring: Scoring
) -> Tensor:
    out = q.new_empty(q.shape)
    q = q if q.stride(-1) == 1 else q.contiguous()
    attend(q, paged_keys(cache, block_tables, seq_lens), cu_seqlens_q.contiguous(), scoring, (out, None))
    return out
