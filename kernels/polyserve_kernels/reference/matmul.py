"""y = x w^T + bias with sums in float32, such that a row's bits do not depend on the other rows.

How      torch's product of matrices on a CPU changes a row's bits with the number of rows, but not at one fixed shape.
         So rows go in chunks of ROWS, the last one filled up with zeros. A chunk of another size, which is read or
         computed faster, takes the place of plain ones where a trial of that very shape gave the same bits as they do.
bfloat16 Where the processor multiplies bfloat16 itself, torch does the whole product: float32 sums, rounded once, the
         bias added before. It cannot return the sums themselves. Gradients are not taken through the chunks, whose
         parts of dw would each be rounded, but are torch's whole products.
float32  Everything else is widened, which is exact, a tile of the weight at a time for all chunks. Tiles depend on N
         and K alone; the last one is filled up to a multiple of ROWS as well, because in narrow products bits change
         with threads. w_tile x_chunk^T is the faster way round here: the long side leads.
Shapes   x [T, K]   w [N, K]   bias [N]   y [T, N]   rows [P, K], x filled up to a multiple of ROWS   tile [n, K]
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from polyserve_kernels import processor
from polyserve_kernels.autograd import differentiable

ROWS = 16
_SMALL = (1, 2, 4, 8, ROWS)  # sizes of chunks, in the order of preference
_LARGE = (512, 256, 128, 64, 32, ROWS)
_TILE_ELEMENTS = 2**20  # at most: 4 MiB of float32 stay in the cache while the chunks pass over them
_MAX_TILE_ROWS = 8192


def matmul(x: Tensor, w: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    if x.dtype == out_dtype == torch.bfloat16 and x.device.type == "cpu" and processor.multiplies_bfloat16():
        y: Tensor = _bfloat16_matmul(x, w, bias)
        return y
    rows = fill_up(x.float())
    parts = [product(tile, rows, len(x)) for tile in weight_tiles(w)]
    y = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))[: len(x), : len(w)]
    if bias is not None:
        y = y + bias.float()
    return y.to(out_dtype).contiguous()


def _multiply_bfloat16(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    return product(w.contiguous(), fill_up(x), len(x), bias)[: len(x)]


def _gradients(
    saved: tuple[Tensor, Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx = dy w,  dw = dy^T x,  dbias = the sum of dy over rows."""
    x, w = saved
    (dy,) = grads
    if dy is None:
        return None, None, None
    return (
        torch.mm(dy, w) if needed[0] else None,
        torch.mm(dy.t(), x) if needed[1] else None,
        dy.sum(0, dtype=torch.float32).to(dy.dtype) if needed[2] else None,
    )


_bfloat16_matmul = differentiable(_multiply_bfloat16, _gradients, save=lambda args, _: args[:2])


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
        yield fill_up(w[start : start + step].float())


def fill_up(x: Tensor) -> Tensor:
    """x [T, K], with rows of zeros after it to a multiple of ROWS."""
    num_spare = -len(x) % ROWS
    return torch.cat((x, x.new_zeros(num_spare, x.shape[1]))) if num_spare else x.contiguous()


def product(tile: Tensor, rows: Tensor, num_rows: int, bias: Tensor | None = None) -> Tensor:
    """The first rows [P, K] times tile^T [K, n], in chunks. Returns [num_rows or a few more, n]."""
    shape = (*tile.shape, tile.dtype, bias is not None, rows.device, torch.get_num_threads())
    sizes = _chunk_sizes(num_rows, shape)
    if len(sizes) == 1:
        return _multiply(tile, rows[: sizes[0]], bias)
    return _in_chunks(tile, rows[: sum(sizes)], sizes, bias)


Shape = tuple[int, int, torch.dtype, bool, torch.device, int]  # n, K, dtype, with a bias, device, threads


def _chunk_sizes(num_rows: int, shape: Shape) -> list[int]:
    """Chunks for that many rows, large ones first: few passes over the weight, and little that is filled up."""
    sizes = []
    while num_rows > 0:
        filled_up = num_rows + -num_rows % ROWS
        fitting = [s for s in _SMALL if s >= num_rows] if num_rows < ROWS else [s for s in _LARGE if s <= filled_up]
        size = next(size for size in fitting if size == ROWS or _same_bits(size, *shape))
        sizes.append(size)
        num_rows -= size
    return sizes or [ROWS]


def _in_chunks(tile: Tensor, rows: Tensor, sizes: int | list[int], bias: Tensor | None) -> Tensor:
    return torch.cat([_multiply(tile, chunk, bias) for chunk in torch.split(rows, sizes)])


def _multiply(tile: Tensor, chunk: Tensor, bias: Tensor | None) -> Tensor:
    if tile.dtype == torch.float32:
        return torch.mm(tile, chunk.t()).t()
    return torch.mm(chunk, tile.t()) if bias is None else torch.addmm(bias, chunk, tile.t())


@lru_cache(maxsize=4096)
def _same_bits(
    size: int,
    tile_rows: int,
    channels: int,
    dtype: torch.dtype,
    biased: bool,
    device: torch.device,
    threads: int,  # noqa: ARG001  (part of the cache's key: a product may be cut differently)
) -> bool:
    """Whether chunks of this size give the bits of plain ones: tried on random numbers.

    The second half of the channels takes away what the first half adds, so that a sum is what its roundings left: sums
    in another order do not look alike after they were rounded to bfloat16.
    """
    numbers = torch.Generator().manual_seed(0)
    order = torch.randperm(channels, generator=numbers)
    tile, rows = (
        torch.randn(count, channels // 2 + channels % 2, generator=numbers).to(dtype)
        for count in (tile_rows, max(size, ROWS))
    )
    tile = torch.cat((tile, tile), dim=1)[:, order].to(device)
    rows = torch.cat((rows, -rows), dim=1)[:, order].to(device)
    bias = torch.zeros(tile_rows, dtype=dtype, device=device) if biased else None
    return torch.equal(_in_chunks(tile, rows, size, bias), _in_chunks(tile, rows, ROWS, bias))
