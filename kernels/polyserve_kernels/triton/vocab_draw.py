"""One id of each row, drawn from softmax(edited logits) over the whole vocabulary, from the parts of its log-sum-exp.

Race    tiles of DRAW_IDS ids race with -log(-log(u0)) + log-sum-exp of the tile: each wins with its share of the total
Inside  u1 draws by inverse CDF inside the winner: first the part, then, from its logits, computed again, the id
Bits    sums are of whole numbers, as in `vocab_fold.py`: a draw is a pure function of the row and its uniforms
Spec    reference/sampling.py, whose tiles these are: the same uniforms draw the same ids, but for roundings
Traffic of a row: 8 bytes a part, and SUM_IDS rows of the weight
Shapes  S rows   P parts   parts [2, S, P]   uniforms [S, tiles, 2]
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.reference.sampling import VOCAB_TILE
from polyserve_kernels.triton.head import Head, raw_of_row, row_options
from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.logit_edits import Edits, edit_row
from polyserve_kernels.triton.vocab_fold import LOWEST, SUM_IDS, exponential_units, log_sum_exp, share_units

DRAW_IDS = VOCAB_TILE  # ids of a tile

_PARTS = tl.constexpr(DRAW_IDS // SUM_IDS)


@triton.jit
def _draw_kernel(
    head, edits, parts_ptr, uniforms_ptr, ids_ptr, raw_ptr, P, num_tiles,
    BLOCK_TILES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    place = row.to(tl.int64)
    tile = tl.arange(0, BLOCK_TILES)
    part = tile[:, None] * _PARTS + tl.arange(0, _PARTS)[None, :]
    m = tl.load(parts_ptr + place * P + part, mask=part < P, other=LOWEST)
    sums = tl.load(parts_ptr + (head.num_rows + place) * P + part, mask=part < P, other=0.0)
    tile_m = tl.max(m, 1)
    units = share_units(sums, m, tile_m[:, None])  # [BLOCK_TILES, _PARTS]
    uniforms_ptr += place * num_tiles * 2

    u0 = tl.load(uniforms_ptr + 2 * tile, mask=tile < num_tiles, other=0.5).to(tl.float64)
    total = tl.where(tl.min(units, 1) < 0, 0, tl.sum(units, 1))  # a tile with nan does not race
    race = tl.where(total > 0, log_sum_exp(tile_m, total) - tl.log(-tl.log(u0)), float("-inf"))
    lead = tl.max(race, 0)
    winner = tl.min(tl.where((race == lead) & (total > 0), tile, BLOCK_TILES), 0)  # BLOCK_TILES where nothing can be

    u1 = tl.load(uniforms_ptr + 2 * winner + 1, mask=winner < num_tiles, other=0.5).to(tl.float64)
    inside = tl.sum(tl.where((tile == winner)[:, None], units, 0), 0)  # [_PARTS]
    p, rest = _inverse_cdf(inside, u1)
    part = winner * _PARTS + p
    n = tl.arange(0, BLOCK_N)
    ids = part * BLOCK_N + n
    raw = raw_of_row(head, row, ids, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
    x = raw
    if edits is not None:
        x = edit_row(edits, raw, row, ids, head.vocab_size)
    units = exponential_units(x, tl.load(parts_ptr + place * P + part, mask=part < P, other=0.0))
    n_drawn, _ = _inverse_cdf(units, rest)
    drawn = winner < num_tiles
    tl.store(ids_ptr + row, tl.where(drawn, (part * BLOCK_N + n_drawn).to(tl.int64), -1))
    tl.store(raw_ptr + row, tl.where(drawn, tl.sum(tl.where(n == n_drawn, raw, 0.0), 0), float("-inf")))


@triton.jit
def _inverse_cdf(units, u):
    """The place in units [n] that u falls on, and how far into it: u, float64, 0 to 1, as before for the next level."""
    total = tl.sum(units, 0)
    target = tl.minimum((total.to(tl.float64) * u).to(tl.int64), total - 1)
    ends = tl.cumsum(units, 0)
    place = tl.sum((ends <= target).to(tl.int32), 0)
    width = tl.sum(tl.where(tl.arange(0, units.shape[0]) == place, units, 0), 0)
    end = tl.sum(tl.where(tl.arange(0, units.shape[0]) == place, ends, 0), 0)
    return place, (target - (end - width)).to(tl.float64) / width.to(tl.float64)


def draw(head: Head, edits: Edits | None, parts: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Drawn ids [S] int64 and their raw logits [S] float32; -1 and -inf in a row of -inf alone.

    parts: of edited logits.  uniforms: [S, num_vocab_tiles, 2].
    """
    uniforms = uniforms.contiguous()
    ids = torch.empty(head.num_rows, dtype=torch.int64, device=parts.device)
    raw = torch.empty(head.num_rows, dtype=torch.float32, device=parts.device)
    tiles = uniforms.shape[1]
    launch(
        _draw_kernel,
        (head.num_rows,),
        head, edits, parts, uniforms, ids, raw, parts.shape[2], tiles,
        BLOCK_TILES=triton.next_power_of_2(tiles),
        **row_options(head),
    )  # fmt: skip
    return ids, raw
