"""One pass over the vocabulary: a tile of logits at a time, edited or not, of which only what is asked for stays.

Kept    parts of the log-sum-exp; the best two of every group of ids
Targets an id of each row whose logit is wanted is computed again: looked for in every tile, it would take registers
        that a larger tile needs
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

from polyserve_kernels.triton.head import Head, raw_of_ids, raw_tile, tile_options
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
    head, edits, raw_kept, edited_kept,
    RAW_GROUP: tl.constexpr, EDITED_GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * BLOCK_N
    raw = raw_tile(head, rows, first + tl.arange(0, BLOCK_N), BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
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
    raw = _empty(head, raw_k)
    edited = None if edits is None else _empty(head, edited_k)
    options = tile_options(head, best=raw_k > 0, edited=edits is not None)
    launch(
        _scan_kernel,
        (triton.cdiv(head.num_rows, options["BLOCK_M"]), triton.cdiv(head.vocab_size, options["BLOCK_N"])),
        head, edits, raw, edited,
        RAW_GROUP=group_size(raw_k, head.vocab_size),
        EDITED_GROUP=group_size(edited_k, head.vocab_size),
        **options,
    )  # fmt: skip
    if targets is None:
        return raw, edited, head.hidden.new_empty(0, dtype=torch.float32)
    ids = torch.where(targets < 0, head.vocab_size, targets)
    return raw, edited, raw_of_ids(head, ids[:, None])[:, 0]


def _empty(head: Head, k: int) -> Kept:
    best = empty_kept(head, group_size(k, head.vocab_size)) if k else None
    return Kept(empty_parts(head.num_rows, head.vocab_size, head.hidden.device), best)
