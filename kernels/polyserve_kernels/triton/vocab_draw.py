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
from polyserve_kernels.triton.head import Head, raw_of_ids
from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.logit_edits import Edits, edit_row
from polyserve_kernels.triton.vocab_fold import LOWEST, SUM_IDS, exponential_units, log_sum_exp, share_units

DRAW_IDS = VOCAB_TILE  # ids of a tile

_SUM_IDS = tl.constexpr(SUM_IDS)
_PARTS = tl.constexpr(DRAW_IDS // SUM_IDS)


@triton.jit
def _race_kernel(
    parts_ptr, uniforms_ptr, ids_ptr, rest_ptr, S, P, V, num_tiles, BLOCK_TILES: tl.constexpr
):  # fmt: skip
    """The ids of the part that each row draws from, ids beyond V if there is none, and what of u1 is left for them."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, BLOCK_TILES)
    part = tile[:, None] * _PARTS + tl.arange(0, _PARTS)[None, :]
    m = tl.load(parts_ptr + row * P + part, mask=part < P, other=LOWEST)
    sums = tl.load(parts_ptr + (S + row) * P + part, mask=part < P, other=0.0)
    tile_m = tl.max(m, 1)
    units = share_units(sums, m, tile_m[:, None])  # [BLOCK_TILES, _PARTS]
    uniforms_ptr += row * num_tiles * 2

    u0 = tl.load(uniforms_ptr + 2 * tile, mask=tile < num_tiles, other=0.5).to(tl.float64)
    total = tl.where(tl.min(units, 1) < 0, 0, tl.sum(units, 1))  # a tile with nan does not race
    race = tl.where(total > 0, log_sum_exp(tile_m, total) - tl.log(-tl.log(u0)), float("-inf"))
    winner = tl.min(tl.where((total > 0) & (race == tl.max(race, 0)), tile, num_tiles), 0)

    u1 = tl.load(uniforms_ptr + 2 * winner + 1, mask=winner < num_tiles, other=0.5).to(tl.float64)
    place, rest = _inverse_cdf(tl.sum(tl.where((tile == winner)[:, None], units, 0), 0), u1)
    n = tl.arange(0, _SUM_IDS)
    ids = tl.where(winner < num_tiles, (winner * _PARTS + place) * _SUM_IDS, V) + n
    tl.store(ids_ptr + row * _SUM_IDS + n, ids.to(tl.int64))
    tl.store(rest_ptr + row, rest)


@triton.jit
def _pick_kernel(parts_ptr, ids_ptr, logits_ptr, edits, rest_ptr, drawn_ptr, raw_ptr, P, V, BLOCK: tl.constexpr):
    """The id that each row draws from its part, and its raw logit."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    ids, raw = tl.load(ids_ptr + row * BLOCK + n), tl.load(logits_ptr + row * BLOCK + n)
    x = raw
    if edits is not None:
        x = edit_row(edits, raw, row, ids, V)
    first = tl.min(ids, 0)
    m = tl.load(parts_ptr + row * P + first // BLOCK, mask=first < V, other=0.0)
    place, _ = _inverse_cdf(exponential_units(x, m), tl.load(rest_ptr + row))
    tl.store(drawn_ptr + row, tl.where(first < V, first + place, -1))
    logit = tl.sum(tl.where(n == place, raw, 0.0), 0)
    tl.store(raw_ptr + row, tl.where(first < V, logit, float("-inf")))


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
    (num_rows, num_tiles, _), num_parts, device = uniforms.shape, parts.shape[2], parts.device
    ids = torch.empty(num_rows, SUM_IDS, dtype=torch.int64, device=device)
    rest = torch.empty(num_rows, dtype=torch.float64, device=device)
    launch(
        _race_kernel, (num_rows,),
        parts, uniforms, ids, rest, num_rows, num_parts, head.vocab_size, num_tiles,
        BLOCK_TILES=triton.next_power_of_2(num_tiles), num_warps=4, num_stages=1,
    )  # fmt: skip
    drawn_ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    drawn_raw = torch.empty(num_rows, dtype=torch.float32, device=device)
    launch(
        _pick_kernel, (num_rows,),
        parts, ids, raw_of_ids(head, ids), edits, rest, drawn_ids, drawn_raw, num_parts, head.vocab_size,
        BLOCK=SUM_IDS, num_warps=1, num_stages=1,
    )  # fmt: skip
    return drawn_ids, drawn_raw
