"""Block sizes, warps and stages: one table for each operation, by architecture.

80: A100   86: GPUs with 100 KB of shared memory, RTX 30 to 50, L4, L40   90: H100, H200   100: B200

Tables are read, never searched at run time: what a table holds is part of the bits of a result (`KERNEL_VERSION`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from polyserve_kernels.triton.launch import INTERPRETED

Row = TypeVar("Row")


def tuned(table: Mapping[int, Row], arch: int) -> Row:
    """The table's row for an architecture, or for the nearest one before it.

    sm_120 has the shared memory and the matrix instructions of sm_86, not of sm_100.
    """
    arch = 86 if arch >= 120 else arch
    return table[max((known for known in table if known <= arch), default=min(table))]


@dataclass(frozen=True, slots=True)
class RowTuning:
    """Operations on whole rows: norms."""

    tile_elements: int  # of a program that takes several short rows at once
    max_channels: int  # of a row that is held in registers
    backward_tile_elements: int
    backward_max_bytes: int  # of a row of slopes, where rows are held in registers
    backward_elements: int  # of all programs that share the rows when gradients of weights are summed


ROWS = {
    arch: RowTuning(2048, 16384, 1024, max_bytes, backward_elements=4096 * multiprocessors)
    for arch, max_bytes, multiprocessors in ((80, 16384, 108), (86, 8192, 108), (90, 16384, 132), (100, 16384, 148))
}


PRODUCT_PROGRAMS = 80  # programs that keep an A100's, H100's or B200's memory busy
_NARROWEST = 32  # columns of the narrowest tile of a product
_MIN_PART = 2048  # channels of a part of K: a shorter one is read before the next kernel has started
_PART_UNIT = 128  # channels that every tile's steps divide
_MAX_THREAD_SUMS_IN_PARTS = 64


@dataclass(frozen=True, slots=True)
class ProductTile:
    """A tile of a dense product x [T, K] w [N, K]^T, and from how many programs on it is chosen before smaller ones."""

    block_m: int  # rows of x
    block_n: int  # rows of w
    block_k: int  # channels in one step of the loop
    num_warps: int
    num_stages: int
    min_programs: int = 0

    @property
    def thread_sums(self) -> int:
        """Elements whose sums a thread holds."""
        return self.block_m * self.block_n // (32 * self.num_warps)

    def count(self, num_rows: int, num_cols: int) -> int:
        """How many tiles a result has."""
        return -(-num_rows // self.block_m) * -(-num_cols // self.block_n)

    def options(self, channels: int) -> dict[str, int | bool]:
        """What a kernel for so many channels is launched with."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "EVEN_K": channels % self.block_k == 0,
            "ROW_TILES": 8,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


# For 16-bit operands. Few rows: as many bytes of w on their way as memory needs, and every program running at once. On
# sm_90 and sm_100 a tile has the rows that wgmma and tcgen05 take, or more.
PRODUCTS = {
    80: (
        ProductTile(128, 128, 64, 8, 4, min_programs=108),
        ProductTile(64, 128, 64, 8, 4, min_programs=108),
        ProductTile(64, 64, 64, 4, 4, min_programs=80),
        ProductTile(64, 32, 64, 4, 6, min_programs=40),
        ProductTile(16, 128, 64, 4, 5, min_programs=80),
        ProductTile(16, 64, 64, 4, 6, min_programs=80),
        ProductTile(16, 32, 64, 4, 8),
    ),
    90: (
        ProductTile(128, 256, 64, 8, 4, min_programs=132),
        ProductTile(128, 128, 64, 8, 3, min_programs=132),
        ProductTile(64, 128, 64, 4, 4, min_programs=80),
        ProductTile(64, 64, 64, 4, 6, min_programs=80),
        ProductTile(64, 32, 128, 4, 6),
    ),
    100: (
        ProductTile(128, 256, 64, 8, 4, min_programs=148),
        ProductTile(128, 128, 64, 8, 4, min_programs=80),
        ProductTile(128, 64, 64, 4, 6, min_programs=80),
        ProductTile(128, 32, 128, 4, 5),
    ),
}

# float32 operands are multiplied one by one, on every architecture.
_PRODUCTS_FLOAT32 = (
    ProductTile(128, 64, 16, 8, 4, min_programs=108),
    ProductTile(64, 64, 16, 8, 4, min_programs=80),
    ProductTile(16, 64, 16, 4, 4, min_programs=80),
    ProductTile(16, 32, 32, 4, 4),
)


# For weights of 8 or 4 bits and 16-bit x: each step makes its tile of w in registers, so tiles are smaller, and more.
QUANTIZED_PRODUCTS = {
    80: (
        ProductTile(64, 64, 64, 4, 4, min_programs=108),
        ProductTile(64, 32, 128, 4, 4, min_programs=40),
        ProductTile(16, 64, 128, 4, 4, min_programs=216),
        ProductTile(16, 32, 128, 4, 4),
    ),
    90: (
        ProductTile(64, 64, 128, 4, 4, min_programs=132),
        ProductTile(64, 32, 128, 4, 4),
    ),
    100: (
        ProductTile(128, 64, 128, 8, 3, min_programs=148),
        ProductTile(128, 32, 128, 4, 4),
    ),
}


def product_tile_for(arch: int, dtype: torch.dtype, num_rows: int, num_cols: int, *, in_parts: bool) -> ProductTile:
    """Of a dense product. Those in parts hold two sums of each element, for which not every tile has the registers."""
    tiles = tuned(PRODUCTS, arch) if dtype.itemsize == 2 else _PRODUCTS_FLOAT32
    if in_parts:
        tiles = tuple(tile for tile in tiles if tile.thread_sums <= _MAX_THREAD_SUMS_IN_PARTS)
    return _choose(tiles, num_rows, num_cols)


def quantized_tile_for(arch: int, num_rows: int, num_cols: int) -> ProductTile:
    """Of a product with a quantised weight and 16-bit x."""
    return _choose(tuned(QUANTIZED_PRODUCTS, arch), num_rows, num_cols)


def _choose(tiles: tuple[ProductTile, ...], num_rows: int, num_cols: int) -> ProductTile:
    """The first tile that gives enough programs and is half full; the last one will always do.

    The interpreter runs one program after another, so there the first tile is enough; and it needs one block_k.
    """
    lowest = min(tile.block_m for tile in tiles)
    filled = [tile for tile in tiles if tile.block_m == lowest or 2 * num_rows >= tile.block_m]
    if INTERPRETED:
        return replace(filled[0], block_k=_PART_UNIT // 2)
    return next((tile for tile in filled if tile.count(num_rows, num_cols) >= tile.min_programs), tiles[-1])


def part_channels(num_cols: int, channels: int) -> int:
    """Channels of each part that K is cut into, all of them where one part will do."""
    num_parts = 1
    while -(-num_cols // _NARROWEST) * num_parts < PRODUCT_PROGRAMS and channels >= 2 * num_parts * _MIN_PART:
        num_parts *= 2
    return -(-channels // (num_parts * _PART_UNIT)) * _PART_UNIT if num_parts > 1 else max(1, channels)


@dataclass(frozen=True, slots=True)
class HeadTile:
    """A tile of logits, rows times ids."""

    block_m: int  # rows
    block_n: int  # ids
    num_warps: int
    num_stages: int

    def options(self, dtype: torch.dtype, channels: int) -> dict[str, int | bool]:
        """What a kernel for operands of this dtype is launched with."""
        block_k = _PART_UNIT // 2 if INTERPRETED else 128 // dtype.itemsize
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": block_k,
            "EVEN_K": channels % block_k == 0,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


@dataclass(frozen=True, slots=True)
class HeadTiles:
    """By what a pass over the vocabulary is for: the less is kept of a tile, the more registers are left for it."""

    few: HeadTile  # for as many rows as it has, which memory bounds: rows that only fill up its instruction are free
    sums: HeadTile  # for more rows, of which log-sum-exps are kept
    best: HeadTile  # the best ids too
    edited: HeadTile  # of raw and of edited logits


HEADS = {
    80: HeadTiles(
        few=HeadTile(64, 128, num_warps=8, num_stages=3),
        sums=HeadTile(128, 128, num_warps=8, num_stages=4),
        best=HeadTile(128, 128, num_warps=16, num_stages=3),
        edited=HeadTile(64, 128, num_warps=8, num_stages=3),
    ),
    90: HeadTiles(
        few=HeadTile(64, 128, num_warps=4, num_stages=4),
        sums=HeadTile(128, 256, num_warps=8, num_stages=3),
        best=HeadTile(128, 128, num_warps=8, num_stages=3),
        edited=HeadTile(128, 128, num_warps=8, num_stages=3),
    ),
    100: HeadTiles(
        few=HeadTile(128, 128, num_warps=8, num_stages=3),
        sums=HeadTile(128, 256, num_warps=8, num_stages=3),
        best=HeadTile(128, 128, num_warps=8, num_stages=3),
        edited=HeadTile(128, 128, num_warps=8, num_stages=3),
    ),
}

_HEAD_FLOAT32 = HeadTile(64, 128, num_warps=8, num_stages=3)  # multiplied one by one, on every architecture


def head_tiles(arch: int, dtype: torch.dtype) -> HeadTiles:
    if dtype == torch.float32:
        return HeadTiles(few=_HEAD_FLOAT32, sums=_HEAD_FLOAT32, best=_HEAD_FLOAT32, edited=_HEAD_FLOAT32)
    return tuned(HEADS, arch)


# Gradients of logits, for training: rows are many. On sm_90 and sm_100 two programs fit on a multiprocessor.
LOGIT_GRADIENTS = {
    80: HeadTile(128, 128, num_warps=8, num_stages=4),
    90: HeadTile(128, 128, num_warps=8, num_stages=3),
    100: HeadTile(128, 128, num_warps=8, num_stages=3),
}


@dataclass(frozen=True, slots=True)
class ActivationTuning:
    """Element by element; gradients by groups of rows, because a bias has one too."""

    block: int  # columns of a program
    backward_rows: int
    backward_block: int
    programs: int  # wanted for gradients, to fill the GPU
    num_warps: int


ACTIVATIONS = {
    80: ActivationTuning(2048, 4, 512, programs=864, num_warps=4),
    90: ActivationTuning(2048, 4, 512, programs=1056, num_warps=4),
    100: ActivationTuning(2048, 4, 512, programs=1184, num_warps=4),
}


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """A tile of query rows, and how a head is cut for its products: what holds no spill, and changes no bit."""

    block_m: int
    num_warps: int  # they share the rows, so that no row's sum is in two of them
    key_part: int  # elements of a head that are multiplied at once, at most
    value_part: int  # elements of a tile's result that are in registers at once, at most
    max_registers: int | None = None  # None: as many as the assembler likes, which may spill to save some


@dataclass(frozen=True, slots=True)
class AttentionTuning:
    """Attention, packed, prefilled and decoded: one number of keys for all three, and one matrix instruction."""

    block_n: int  # keys of a tile
    prefill: AttentionRows
    decode: AttentionRows
    num_stages: int  # of the loop over key tiles; one more where keys are found through a block table
    decode_programs: int  # wanted, to fill the GPU: a batch that gives fewer shares its key tiles among several


ATTENTION = {  # architecture, then the largest head size that a row is for
    80: {
        96: AttentionTuning(64, AttentionRows(128, 8, 32, 16), AttentionRows(64, 4, 32, 16, 255), 4, 864),
        128: AttentionTuning(64, AttentionRows(128, 8, 32, 16), AttentionRows(64, 4, 32, 16), 4, 864),
        256: AttentionTuning(64, AttentionRows(128, 8, 128, 32), AttentionRows(64, 4, 128, 32), 2, 864),
    },
    86: {  # at head size 128 a thread of paged attention spills 8 or 16 bytes, on sm_120 with all options up to 80
        128: AttentionTuning(64, AttentionRows(128, 8, 16, 16), AttentionRows(64, 4, 16, 16), 3, 864),
        256: AttentionTuning(32, AttentionRows(128, 8, 16, 16), AttentionRows(64, 4, 16, 16), 2, 864),
    },
    90: {
        128: AttentionTuning(64, AttentionRows(128, 8, 64, 64), AttentionRows(64, 4, 64, 32), 3, 1056),
        256: AttentionTuning(64, AttentionRows(128, 8, 64, 64), AttentionRows(64, 4, 64, 32), 2, 1056),
    },
    100: {
        128: AttentionTuning(64, AttentionRows(128, 8, 64, 64), AttentionRows(128, 8, 64, 64), 3, 1184),
        256: AttentionTuning(32, AttentionRows(128, 8, 64, 64), AttentionRows(128, 8, 64, 64), 2, 1184),
    },
}
_ATTENTION_FLOAT32 = AttentionTuning(32, AttentionRows(32, 4, 32, 32), AttentionRows(32, 4, 32, 32), 2, 864)
_INTERPRETED_DECODE_PROGRAMS = 8  # so that small batches share key tiles and others do not


def attention_tuning(arch: int, head_size: int, dtype: torch.dtype) -> AttentionTuning:
    """The interpreter runs one program after another and has no registers: it is faster with few and large tiles."""
    by_size = tuned(ATTENTION, arch)
    tuning = by_size[min((size for size in by_size if size >= head_size), default=max(by_size))]
    if INTERPRETED:
        return replace(tuning, decode_programs=_INTERPRETED_DECODE_PROGRAMS)
    return _ATTENTION_FLOAT32 if dtype == torch.float32 else tuning


@dataclass(frozen=True, slots=True)
class BackwardTiles:
    """What one program of attention's backward pass computes the gradients of, and what it walks over."""

    block_m: int  # queries
    block_n: int  # keys
    part: int  # elements of a head that are multiplied at once, at most
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class AttentionBackwardTuning:
    queries: BackwardTiles  # for dq
    keys: BackwardTiles  # for dk, and for dv too if it has no tiles of its own
    values: BackwardTiles | None = None


ATTENTION_BACKWARD = {  # by the largest head size that its rows are for
    64: {
        80: AttentionBackwardTuning(BackwardTiles(128, 64, 64, 8, 2), BackwardTiles(32, 64, 64, 4, 2)),
        90: AttentionBackwardTuning(BackwardTiles(128, 64, 64, 8, 2), BackwardTiles(64, 128, 64, 8, 2)),
        100: AttentionBackwardTuning(BackwardTiles(128, 64, 64, 8, 2), BackwardTiles(64, 128, 64, 8, 2)),
    },
    96: {
        80: AttentionBackwardTuning(BackwardTiles(128, 32, 64, 8, 2), BackwardTiles(32, 64, 128, 8, 2)),
        90: AttentionBackwardTuning(BackwardTiles(128, 64, 32, 8, 2), BackwardTiles(32, 128, 128, 8, 2)),
        100: AttentionBackwardTuning(BackwardTiles(128, 64, 64, 8, 2), BackwardTiles(64, 128, 128, 8, 2)),
    },
    128: {
        80: AttentionBackwardTuning(BackwardTiles(128, 32, 64, 8, 2), BackwardTiles(32, 64, 128, 8, 2)),
        90: AttentionBackwardTuning(BackwardTiles(128, 64, 64, 8, 2), BackwardTiles(32, 128, 128, 8, 2)),
        100: AttentionBackwardTuning(BackwardTiles(128, 64, 64, 8, 2), BackwardTiles(64, 128, 128, 8, 2)),
    },
    256: {
        80: AttentionBackwardTuning(
            BackwardTiles(64, 32, 128, 8, 2), BackwardTiles(32, 64, 128, 8, 2), BackwardTiles(64, 64, 128, 8, 2)
        ),
        86: AttentionBackwardTuning(
            BackwardTiles(64, 16, 128, 8, 2), BackwardTiles(16, 64, 128, 8, 2), BackwardTiles(32, 64, 128, 8, 2)
        ),
        90: AttentionBackwardTuning(
            BackwardTiles(128, 32, 64, 8, 2), BackwardTiles(32, 128, 64, 8, 2), BackwardTiles(32, 128, 64, 8, 2)
        ),
        100: AttentionBackwardTuning(
            BackwardTiles(128, 32, 128, 8, 2), BackwardTiles(32, 128, 128, 8, 2), BackwardTiles(32, 128, 64, 8, 3)
        ),
    },
}
_FLOAT32_TILES = BackwardTiles(32, 32, 32, 8, 3)
_SMALL_FLOAT32_TILES = BackwardTiles(32, 32, 32, 8, 2)
_WIDE_FLOAT32_TILES = BackwardTiles(16, 32, 32, 8, 2)
ATTENTION_BACKWARD_FLOAT32 = {
    128: {
        80: AttentionBackwardTuning(_FLOAT32_TILES, _FLOAT32_TILES, _FLOAT32_TILES),
        86: AttentionBackwardTuning(_SMALL_FLOAT32_TILES, _SMALL_FLOAT32_TILES, _SMALL_FLOAT32_TILES),
        90: AttentionBackwardTuning(_FLOAT32_TILES, _FLOAT32_TILES, _FLOAT32_TILES),
    },
    256: {
        80: AttentionBackwardTuning(BackwardTiles(32, 16, 32, 8, 3), _WIDE_FLOAT32_TILES, _WIDE_FLOAT32_TILES),
        86: AttentionBackwardTuning(BackwardTiles(16, 16, 32, 8, 2), _WIDE_FLOAT32_TILES, _WIDE_FLOAT32_TILES),
        90: AttentionBackwardTuning(BackwardTiles(32, 16, 32, 8, 3), _WIDE_FLOAT32_TILES, _WIDE_FLOAT32_TILES),
    },
}


def attention_backward_tuning(arch: int, head_size: int, dtype: torch.dtype) -> AttentionBackwardTuning:
    is_float32 = dtype == torch.float32 and not INTERPRETED
    table = ATTENTION_BACKWARD_FLOAT32 if is_float32 else ATTENTION_BACKWARD
    widest = min((size for size in table if size >= head_size), default=max(table))
    return tuned(table[widest], arch)
