"""One pass over the vocabulary: a tile of logits at a time, edited or not, of which only what is asked for stays.

Kept    parts of the log-sum-exp; the best two of every group of ids; the logits of given ids, one a row
Order   all row tiles pass over the vocabulary together, so that they share a tile of the weight in L2, and its callers
        give at most MAX_ROWS rows where more could be meant, so that hidden states stay there too
Traffic the weight and hidden states once; of what is kept, 8 bytes a part and 16 bytes a group of a row
Flops   2 S V C
Shapes  S rows   V vocabulary   P parts   N groups
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.head import Head, raw_tile, tile_options
from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.logit_edits import Edits, edit_tile
from polyserve_kernels.triton.vocab_best import empty_kept, group_size, store_best
from polyserve_kernels.triton.vocab_fold import SUM_IDS, empty_parts, store_sums

MAX_ROWS = 1024

_SUM_IDS = tl.constexpr(SUM_IDS)


class Kept(NamedTuple):
    """What stays of a distribution's logits."""

    parts: Tensor  # [2, S, P]
    best: Tensor | None  # [S, 2, N]


@triton.jit
def _scan_kernel(
    head, edits, raw_kept, edited_kept, targets_ptr, target_logits_ptr,
    RAW_GROUP: tl.constexpr, EDITED_GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    raw = raw_tile(head, rows, first + n, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
    if targets_ptr is not None:
        place = tl.load(targets_ptr + rows, mask=rows < head.num_rows, other=-1) - first
        place = tl.where((place >= 0) & (place < BLOCK_N) & (place < head.vocab_size - first), place, -1).to(tl.int32)
        logits = tl.sum(tl.where(place[:, None] == n[None, :], raw, 0.0), 1)
        tl.store(target_logits_ptr + rows, logits, mask=place >= 0)
    _keep(head, raw_kept, raw, rows, first, RAW_GROUP, BLOCK_M, BLOCK_N)
    if edits is not None:
        edited = edit_tile(edits, raw, rows, first, head.num_rows, head.vocab_size, BLOCK_M, BLOCK_N)
        _keep(head, edited_kept, edited, rows, first, EDITED_GROUP, BLOCK_M, BLOCK_N)


@triton.jit
def _keep(
    head, kept, x, rows, first, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    P = tl.cdiv(head.vocab_size, _SUM_IDS)
    store_sums(kept.parts, x, rows, first // _SUM_IDS, head.num_rows, P, BLOCK_M, BLOCK_N)
    if kept.best is not None:
        store_best(kept.best, x, rows, first, head.num_rows, head.vocab_size, GROUP, BLOCK_M, BLOCK_N)


def scan(
    head: Head, edits: Edits | None, *, raw_k: int, edited_k: int = 0, targets: Tensor | None = None
) -> tuple[Kept, Kept | None, Tensor]:
    """What is kept of raw logits and, with edits, of edited ones, so that the best k can be found; 0: none are wanted.

    Third, the raw logits [S] of targets [S] int64, -inf where there is no such id; without targets none.
    """
    device = head.hidden.device
    raw = _empty(head, raw_k)
    edited = None if edits is None else _empty(head, edited_k)
    targets = None if targets is None else targets.contiguous()
    logits = torch.full((0,) if targets is None else targets.shape, -torch.inf, dtype=torch.float32, device=device)
    options = tile_options(head, only_sums=edits is None and raw_k == 0)
    launch(
        _scan_kernel,
        (triton.cdiv(head.num_rows, options["BLOCK_M"]), triton.cdiv(head.vocab_size, options["BLOCK_N"])),
        head, edits, raw, edited, targets, logits,
        RAW_GROUP=group_size(raw_k, head.vocab_size),
        EDITED_GROUP=group_size(edited_k, head.vocab_size),
        **options,
    )  # fmt: skip
    return raw, edited, logits


def _empty(head: Head, k: int) -> Kept:
    best = empty_kept(head, group_size(k, head.vocab_size)) if k else None
    return Kept(empty_parts(head.num_rows, head.vocab_size, head.hidden.device), best)
