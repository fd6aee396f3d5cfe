"""y = x w^T + bias with sums in float32, such that a row's bits do not depend on the other rows.

How      torch's product of matrices on a CPU changes a row's bits with the number of rows, but not at one fixed shape.
         So rows go in chunks of ROWS, the last one filled up with zeros. A chunk of another size, which is faster,
         takes the place of plain ones where a trial of that very shape gave the same bits as they do.
bfloat16 Where the processor multiplies bfloat16 itself, torch does the whole product: float32 sums, rounded once, the
         bias added before. It cannot return the sums themselves. Gradients are not taken through the chunks, whose
         parts of dw would each be rounded, but are torch's whole products.
float32  Everything else is widened, which is exact, a tile of the weight at a time for all chunks. Tiles depend on N
         and K alone. A tile is cut into _PARTS that are multiplied as a batch: of a batch no product is cut up among
         threads, and its bits are those of larger ones from 4 rows on. Its sums are plain, so long ones are made of
         sums of _CHANNELS, and its bits change with where a row begins, so rows are filled up to 16 bytes.
Shapes   x [T, K]   w [N, K]   bias [N]   y [T, N]   rows [P, K], x filled up to a multiple of ROWS   tile [n, K]
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from polyserve_kernels import processor
from polyserve_kernels.autograd import differentiable

ROWS = 16
_SIZES = (1, 2, 4, 8, ROWS, 32, 64, 128, 256, 512)  # of chunks
_SPARE = 32  # rows that are filled up rather than read the weight once more for what is left over
_PARTS = 8
_CHANNELS = 1024
_ALIGNED = 4  # elements of float32
_TILE_ELEMENTS = 2**20  # at most: 4 MiB of float32 stay in the cache while the chunks pass over them
_MAX_TILE_ROWS = 8192


def matmul(x: Tensor, w: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    if x.dtype == out_dtype == torch.bfloat16 and x.device.type == "cpu" and processor.multiplies_bfloat16():
        y: Tensor = _bfloat16_matmul(x, w, bias)
        return y
    y = float32_product(x, w)
    if bias is not None:
        y = y + bias.float()
    return y.to(out_dtype).contiguous()


def float32_product(x: Tensor, w: Tensor) -> Tensor:
    """x w^T, the sums themselves."""
    spare = (0, -x.shape[1] % _ALIGNED)
    rows, w = (F.pad(x, spare), F.pad(w, spare)) if spare[1] else (x, w)
    rows = rows.float().contiguous()
    parts = [_product(tile, rows) for tile in _weight_tiles(w)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))[:, : len(w)]


def _multiply_bfloat16(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    return _product(w.contiguous(), x.contiguous(), bias)


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


def _weight_tiles(w: Tensor) -> Iterator[Tensor]:
    """The weight's tiles [n, K] in float32, in ascending order, the last one filled up to a multiple of ROWS."""
    step = weight_tile_rows(w.shape[1])
    for start in range(0, max(1, len(w)), step):
        tile = w[start : start + step].float().contiguous()
        yield _fill_up(tile, len(tile) + -len(tile) % ROWS)


def _fill_up(x: Tensor, num_rows: int) -> Tensor:
    """x [T, K], with rows of zeros after it."""
    num_spare = num_rows - len(x)
    return torch.cat((x, x.new_zeros(num_spare, x.shape[1]))) if num_spare else x


def _product(tile: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times tile^T [K, n], in chunks. Returns [T, n]."""
    shape = (*tile.shape, tile.dtype, bias is not None, x.device, torch.get_num_threads())
    sizes = _chunk_sizes(len(x), shape)
    return _in_chunks(tile, _fill_up(x, sum(sizes)), sizes, bias)[: len(x)]


Shape = tuple[int, int, torch.dtype, bool, torch.device, int]  # n, K, dtype, with a bias, device, threads


def _chunk_sizes(num_rows: int, shape: Shape) -> list[int]:
    """Sizes of chunks for that many rows: few passes over the weight, and little that is filled up."""
    sizes = []
    while num_rows > 0:
        filled_up = [size for size in _SIZES if num_rows <= size <= num_rows + _SPARE]
        full = [size for size in reversed(_SIZES) if size <= num_rows]
        sizes.append(next(size for size in filled_up + full if size == ROWS or _same_bits(size, *shape)))
        num_rows -= sizes[-1]
    return sizes or [0]


def _in_chunks(tile: Tensor, rows: Tensor, sizes: int | list[int], bias: Tensor | None) -> Tensor:
    chunks = [_multiply(tile, chunk, bias) for chunk in torch.split(rows, sizes)]
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)


def _multiply(tile: Tensor, chunk: Tensor, bias: Tensor | None) -> Tensor:
    """chunk [R, K] times tile^T [K, n] + bias. Returns [R, n]."""
    if tile.dtype != torch.float32:
        return torch.mm(chunk, tile.t()) if bias is None else torch.addmm(bias, chunk, tile.t())
    parts = tile.view(_PARTS, len(tile) // _PARTS, tile.shape[1]).transpose(1, 2)  # [_PARTS, K, n / _PARTS]
    chunks = chunk.expand(_PARTS, -1, -1)
    y = torch.bmm(chunks[..., :_CHANNELS], parts[:, :_CHANNELS])
    for start in range(_CHANNELS, tile.shape[1], _CHANNELS):
        channels = slice(start, start + _CHANNELS)
        y = torch.baddbmm(y, chunks[..., channels], parts[:, channels])
    return y.transpose(0, 1).flatten(1)


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
