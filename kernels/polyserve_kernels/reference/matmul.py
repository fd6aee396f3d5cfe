"""y = x w^T + bias in float32, such that a row's bits do not depend on the other rows.

How      torch's product of matrices on a CPU changes a row's bits with the number of rows, but not at one fixed shape.
         So rows go in chunks of ROWS, and weights in tiles whose size depends on N and K alone; the last of each is
         filled up with zeros to a multiple of ROWS, because in narrow products bits change with threads as well. A
         tile that is not float32 is widened once, for all chunks: each bfloat16 or float16 is a float32.
Wide     A chunk of 2 or 4 times ROWS is faster and takes the place of as many plain ones, where a trial of that very
         shape gave the same bits as they do.
Layout   w_tile [n, K] x_chunk^T [K, ROWS] is the faster way round: the long side leads.
Shapes   x [T, K]   w [N, K]   bias [N]   y [T, N]   rows [P, K], x filled up to a multiple of ROWS
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

ROWS = 16
_WIDE = (4 * ROWS, 2 * ROWS)
_TILE_ELEMENTS = 2**20  # at most: 4 MiB of float32 stay in the cache while the chunks pass over them
_MAX_TILE_ROWS = 8192


def matmul(x: Tensor, w: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    rows = fill_up(x)
    parts = [tile_product(tile, rows) for tile in weight_tiles(w)]
    y = (parts[0] if len(parts) == 1 else torch.cat(parts))[: len(w)]  # [N, P]
    if bias is not None:
        y = y + bias.float()[:, None]
    return y.t()[: len(x)].to(out_dtype).contiguous()


def weight_tile_rows(channels: int) -> int:
    """How many rows of a weight with `channels` columns make a tile: a power of two."""
    rows = ROWS
    while rows < _MAX_TILE_ROWS and 2 * rows * channels <= _TILE_ELEMENTS:
        rows *= 2
    return rows


def weight_tiles(w: Tensor) -> Iterator[Tensor]:
    """The weight's tiles [n, K] in float32, in ascending order, the last one filled up."""
    step = weight_tile_rows(w.shape[1])
    for start in range(0, max(1, len(w)), step):
        tile = w[start : start + step]
        yield fill_up(tile) if len(tile) % ROWS else tile.float().contiguous()


def fill_up(x: Tensor) -> Tensor:
    """x [T, K] in float32, with rows of zeros after it to a multiple of ROWS."""
    num_rows, channels = x.shape
    rows = torch.zeros(-(-num_rows // ROWS) * ROWS, channels, device=x.device)
    rows[:num_rows] = x
    return rows


def tile_product(tile: Tensor, rows: Tensor) -> Tensor:
    """tile [n, K] x rows^T [K, P], in chunks of rows. Returns [n, P].

    A tile of a few rows more than a multiple of ROWS is filled up too: its last rows have other bits at another number
    of threads.
    """
    n = len(tile)
    if n % ROWS:
        tile = fill_up(tile)
    sizes = _chunk_sizes(len(rows), _same_bits(*tile.shape, torch.get_num_threads()))
    if len(sizes) <= 1:
        return torch.mm(tile, rows.t())[:n]
    return torch.cat([torch.mm(tile, chunk.t()) for chunk in torch.split(rows, sizes)], dim=1)[:n]


@lru_cache(maxsize=4096)
def _chunk_sizes(num_rows: int, wide: tuple[int, ...]) -> list[int]:
    """Sizes of chunks that make up a multiple of ROWS, the wide ones first."""
    sizes = []
    for size in (*wide, ROWS):
        sizes += [size] * (num_rows // size)
        num_rows %= size
    return sizes


@lru_cache(maxsize=4096)
def _same_bits(
    tile_rows: int,
    channels: int,
    threads: int,  # noqa: ARG001  (part of the cache's key: a product may be cut differently)
) -> tuple[int, ...]:
    """The wide chunk sizes that gave the same bits as plain ones when tried on random numbers of this shape."""
    numbers = torch.Generator().manual_seed(0)
    tile = torch.randn(tile_rows, channels, generator=numbers)
    rows = torch.randn(_WIDE[0], channels, generator=numbers)
    plain = torch.cat([torch.mm(tile, chunk.t()) for chunk in torch.split(rows, ROWS)], dim=1)
    return tuple(size for size in _WIDE if torch.equal(torch.mm(tile, rows[:size].t()), plain[:, :size]))
