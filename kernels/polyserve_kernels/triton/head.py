"""The head as kernels are given it, and its logits: a tile of rows and ids, or any ids of one row.

Tile    BLOCK_M rows times BLOCK_N ids, all of whose logits are computed together
Row     ids of one row alone are computed in a tile of BLOCK_M rows whose others are 0, by the same matrix instruction,
        so that they have the tile's bits
Shapes  S rows   V vocabulary   C channels   hidden [S, C]   weight [V, C]
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.launch import INTERPRETED, architecture, launch
from polyserve_kernels.triton.tuning import HeadTiles, head_tiles
from polyserve_kernels.triton.vocab_fold import SUM_IDS, logit_tile

_INTERPRETED_IDS = 2048  # of a tile: the interpreter takes as long for a small operation as for a large one


class Head(NamedTuple):
    hidden: Tensor
    weight: Tensor
    num_rows: int
    vocab_size: int
    channels: int
    hidden_stride: int
    weight_stride: int
    soft_cap: float | None


def head_of(hidden: Tensor, weight: Tensor, soft_cap: float | None) -> Head:
    hidden, weight = (x if x.stride(1) == 1 else x.contiguous() for x in (hidden, weight))
    return Head(
        hidden=hidden,
        weight=weight,
        num_rows=hidden.shape[0],
        vocab_size=weight.shape[0],
        channels=weight.shape[1],
        hidden_stride=hidden.stride(0),
        weight_stride=weight.stride(0),
        soft_cap=soft_cap,
    )


def tile_options(head: Head, *, best: bool, edited: bool) -> dict[str, int | bool]:
    """What kernels are launched with that pass over the whole vocabulary; what they keep, besides sums."""
    tiles = _tiles(head)
    tile = tiles.edited if edited else tiles.best if best else tiles.sums
    if head.num_rows <= tiles.few.block_m:
        tile = tiles.few
    return (replace(tile, block_n=_INTERPRETED_IDS) if INTERPRETED else tile).options(head.hidden.dtype, head.channels)


def row_options(head: Head) -> dict[str, int | bool]:
    """What kernels are launched with that want SUM_IDS ids of one row."""
    return replace(_tiles(head).few, block_n=SUM_IDS).options(head.hidden.dtype, head.channels)


def _tiles(head: Head) -> HeadTiles:
    return head_tiles(architecture(head.hidden.device), head.hidden.dtype)


@triton.jit
def raw_tile(
    head, rows, ids, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr
):
    """Raw logits [BLOCK_M, BLOCK_N] of rows and ids, -inf beyond the vocabulary."""
    return _logits_below(head, rows, head.num_rows, ids, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)


@triton.jit
def _logits_below(
    head, rows, end, ids, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr
):
    CAPPED: tl.constexpr = head.soft_cap is not None
    return logit_tile(
        head.hidden, head.weight, rows, ids, end, head.vocab_size, head.channels,
        head.hidden_stride, head.weight_stride, head.soft_cap, CAPPED, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K,
    )  # fmt: skip


@triton.jit
def _raw_of_ids_kernel(
    head, ids_ptr, raw_ptr, num_ids, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = row.to(tl.int64) * num_ids + n
    ids = tl.load(ids_ptr + place, mask=n < num_ids, other=head.vocab_size)
    raw = tl.full((BLOCK_N,), float("-inf"), dtype=tl.float32)
    if tl.min(ids, 0) < head.vocab_size:
        rows = row + tl.arange(0, BLOCK_M)
        tile = _logits_below(head, rows, row + 1, ids, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
        raw = tl.sum(tl.where((rows == row)[:, None], tile, 0.0), 0)
    tl.store(raw_ptr + place, raw, mask=n < num_ids)


def raw_of_ids(head: Head, ids: Tensor) -> Tensor:
    """Raw logits [S, K] float32 of ids [S, K], 0 or more, of each row; -inf beyond the vocabulary."""
    ids = ids.contiguous()
    raw = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    grid = (head.num_rows, triton.cdiv(ids.shape[1], SUM_IDS))
    launch(_raw_of_ids_kernel, grid, head, ids, raw, ids.shape[1], **row_options(head))
    return raw
