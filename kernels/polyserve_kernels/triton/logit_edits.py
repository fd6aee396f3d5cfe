"""`LogitEdits` and temperature, applied to a tile of raw logits or to ids of one row as they are computed.

    edited = (raw > 0 ? raw / repetition : raw * repetition) + bias,  -inf where not allowed,  then / temperature
Entries  are put in order of (row, id), so that those of a row in a part of the vocabulary are one slice. In a tile all
         rows step through their slices together, an entry each; for ids of one row each id is looked up in its slice
Traffic  20 bytes an entry and 4 bytes a part, besides the mask
Shapes   E entries   S rows   P = ceil(V / SUM_IDS) parts of a row   starts [S, P + 1]
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.vocab_fold import SUM_IDS, num_parts
from polyserve_kernels.types import LogitEdits

_SUM_IDS = tl.constexpr(SUM_IDS)
_LOOKUP_STEPS = tl.constexpr(SUM_IDS.bit_length())  # SUM_IDS, half of it, ..., 1: they find one of as many entries


class Edits(NamedTuple):
    """What changes logits, as kernels are given it. A None changes nothing."""

    keys: Tensor | None  # [E] int64, row * P * SUM_IDS + id, ascending
    repetition: Tensor | None  # [E] float32, in the order of keys
    bias: Tensor | None
    starts: Tensor | None  # [S, P + 1] int32, the first entry of each part of each row
    num_parts: int
    allowed: Tensor | None  # [S, words] int32
    allowed_stride: int
    temperature: Tensor | None  # [S] float32


def prepare(edits: LogitEdits | None, temperature: Tensor | None, num_rows: int, vocab_size: int) -> Edits | None:
    """What kernels need of them; None if they change nothing."""
    parts = num_parts(vocab_size)
    keys = repetition = bias = starts = allowed = None
    if edits is not None and edits.rows.shape[0]:
        keys, order = _keys(edits, num_rows, vocab_size, row_keys=parts * SUM_IDS).sort()
        repetition, bias = edits.repetition[order], edits.bias[order]
        rows, firsts = (torch.arange(count, device=keys.device) for count in (num_rows, parts + 1))
        limits = rows[:, None] * (parts * SUM_IDS) + firsts * SUM_IDS
        starts = torch.searchsorted(keys, limits, out_int32=True)
    if edits is not None and edits.allowed is not None:
        allowed = edits.allowed if edits.allowed.stride(1) == 1 else edits.allowed.contiguous()
    if keys is None and allowed is None and temperature is None:
        return None
    stride = 0 if allowed is None else allowed.stride(0)
    temperature = None if temperature is None else temperature.contiguous()
    return Edits(keys, repetition, bias, starts, parts, allowed, stride, temperature)


def _keys(edits: LogitEdits, num_rows: int, vocab_size: int, *, row_keys: int) -> Tensor:
    """A number for each entry that orders them by row and id; entries of no row or id of the head are put last."""
    inside = (edits.rows >= 0) & (edits.rows < num_rows) & (edits.ids >= 0) & (edits.ids < vocab_size)
    return torch.where(inside, edits.rows * row_keys + edits.ids, num_rows * row_keys)


@triton.jit
def edit_tile(edits, raw, rows, first, S, V, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Edited logits of a tile of raw ones [BLOCK_M, BLOCK_N], of rows and of ids from `first`, which begins a part."""
    row, inside = rows.to(tl.int64), rows < S
    ids = first + tl.arange(0, BLOCK_N)
    edited = raw
    if edits.keys is not None:
        starts = edits.starts + row * (edits.num_parts + 1)
        part = first // _SUM_IDS
        entry = tl.load(starts + part, mask=inside, other=0)
        end = tl.load(starts + tl.minimum(part + BLOCK_N // _SUM_IDS, edits.num_parts), mask=inside, other=0)
        for _ in range(tl.max(end - entry, 0)):
            there = entry < end
            key = tl.load(edits.keys + entry, mask=there, other=-1)
            hit = (key - row * (edits.num_parts * _SUM_IDS))[:, None] == ids[None, :]
            changed = _change(edits, tl.sum(tl.where(hit, edited, 0.0), 1), entry, there)  # an id has one entry
            edited = tl.where(hit, changed[:, None], edited)
            entry += 1
    if edits.allowed is not None:
        word = first // 32 + tl.arange(0, BLOCK_N // 32)
        words = edits.allowed + (row * edits.allowed_stride)[:, None] + word[None, :]
        bits = tl.load(words, mask=inside[:, None] & (word < tl.cdiv(V, 32))[None, :], other=0)
        allowed = (bits[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1 == 1
        by_words = tl.reshape(edited, (BLOCK_M, BLOCK_N // 32, 32))
        edited = tl.reshape(tl.where(allowed, by_words, float("-inf")), (BLOCK_M, BLOCK_N))
    if edits.temperature is not None:
        edited = tl.div_rn(edited, tl.load(edits.temperature + row, mask=inside, other=1.0)[:, None])
    return edited


@triton.jit
def edit_row(edits, raw, row, ids, V):
    """Edited logits of raw ones [n] of ids in one row; ids of V and more are nowhere."""
    inside = ids < V
    edited = raw
    row = row.to(tl.int64)
    if edits.keys is not None:
        starts = edits.starts + row * (edits.num_parts + 1) + ids // _SUM_IDS
        entry = tl.load(starts, mask=inside, other=0)
        end = tl.load(starts + 1, mask=inside, other=0)
        wanted = row * (edits.num_parts * _SUM_IDS) + ids
        for i in tl.static_range(_LOOKUP_STEPS):
            further = entry + (_SUM_IDS >> i)
            key = tl.load(edits.keys + further - 1, mask=further <= end, other=-1)
            entry = tl.where((further <= end) & (key < wanted), further, entry)
        there = entry < end
        there &= tl.load(edits.keys + entry, mask=there, other=-1) == wanted
        edited = tl.where(there, _change(edits, raw, entry, there), raw)
    if edits.allowed is not None:
        word = tl.load(edits.allowed + row * edits.allowed_stride + ids // 32, mask=inside, other=0)
        edited = tl.where((word >> (ids % 32)) & 1 == 1, edited, float("-inf"))
    if edits.temperature is not None:
        edited = tl.div_rn(edited, tl.load(edits.temperature + row))
    return edited


@triton.jit
def _change(edits, raw, entry, there):
    """What entries make of raw logits."""
    repetition = tl.load(edits.repetition + entry, mask=there, other=1.0)
    bias = tl.load(edits.bias + entry, mask=there, other=0.0)
    return tl.where(raw > 0, tl.div_rn(raw, repetition), raw * repetition) + bias
