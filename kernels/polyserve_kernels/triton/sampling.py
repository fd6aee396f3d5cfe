"""What sampling needs of the head: hidden states times the vocabulary, in one pass that never holds [S, V].

Pass    `vocab_scan.py` keeps of each row the parts of its log-sum-exps and the best two of every group of ids
After   `vocab_fold.py` sums the parts, `vocab_best.py` finds the best K, `vocab_draw.py` draws
Spec    reference/sampling.py
Traffic the weight once. Besides, for each row, the weight's rows of: open groups (`vocab_best.py`), SUM_IDS ids to draw
        from, and where edits change logits the best K, whose raw logits are computed again
Memory  of a row: 8 bytes a part, 16 bytes a group, both also of edited logits, and 8 for each id of K / 2 open groups.
        More than MAX_ROWS rows take several passes, so that it does not grow with rows times vocabulary
Bits    a logit is the same number in every kernel here, and as `matmul` gives it
Shapes  S rows   C channels   V vocabulary   K candidates   hidden [S, C]   weight [V, C]
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.cross_entropy import chunks
from polyserve_kernels.triton.head import Head, head_of, raw_of_ids, raw_tile, tile_options
from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.logit_edits import Edits, edit_tile, prepare
from polyserve_kernels.triton.vocab_best import best_keys, unpack
from polyserve_kernels.triton.vocab_draw import DRAW_IDS, draw
from polyserve_kernels.triton.vocab_fold import fold
from polyserve_kernels.triton.vocab_scan import MAX_ROWS, scan
from polyserve_kernels.types import HeadTopK, LogitEdits


@triton.jit
def _logits_kernel(
    head, edits, raw_ptr, edited_ptr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * BLOCK_N
    ids = first + tl.arange(0, BLOCK_N)
    raw = raw_tile(head, rows, ids, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
    start = rows.to(tl.int64) * head.vocab_size
    inside = (rows < head.num_rows)[:, None] & (ids < head.vocab_size)[None, :]
    tl.store((raw_ptr + start)[:, None] + ids[None, :], raw, mask=inside)
    if edits is not None:
        raw = edit_tile(edits, raw, rows, first, head.num_rows, head.vocab_size, BLOCK_M, BLOCK_N)
    tl.store((edited_ptr + start)[:, None] + ids[None, :], raw, mask=inside)


def num_vocab_tiles(vocab_size: int, channels: int) -> int:  # noqa: ARG001  (other backends' tiles depend on it)
    return -(-vocab_size // DRAW_IDS)


def head_topk(
    hidden: Tensor,
    weight: Tensor,
    *,
    k: int,
    temperature: Tensor | None,
    edits: LogitEdits | None,
    uniforms: Tensor | None,
    num_top: int,
    soft_cap: float | None,
) -> HeadTopK:
    if len(hidden) <= MAX_ROWS:
        changes = prepare(edits, temperature, len(hidden), len(weight))
        return _best(head_of(hidden, weight, soft_cap), changes, k, uniforms, num_top)
    passes = [
        head_topk(
            hidden[rows],
            weight,
            k=k,
            temperature=None if temperature is None else temperature[rows],
            edits=None if edits is None else _edits_of(edits, rows),
            uniforms=None if uniforms is None else uniforms[rows],
            num_top=num_top,
            soft_cap=soft_cap,
        )
        for rows in chunks(len(hidden), MAX_ROWS)
    ]
    return _joined(passes)


def _edits_of(edits: LogitEdits, rows: slice) -> LogitEdits:
    """Those of some rows, counted from the first one. Entries of other rows then name none, and change nothing."""
    allowed = None if edits.allowed is None else edits.allowed[rows]
    return replace(edits, rows=edits.rows - rows.start, allowed=allowed)


def _joined(passes: Sequence[HeadTopK]) -> HeadTopK:
    """The rows of all passes."""
    joined: dict[str, Any] = {}
    for field in fields(HeadTopK):
        parts = [getattr(part, field.name) for part in passes]
        joined[field.name] = None if parts[0] is None else torch.cat(parts)
    return HeadTopK(**joined)


def _best(head: Head, changes: Edits | None, k: int, uniforms: Tensor | None, num_top: int) -> HeadTopK:
    num_raw = num_top if changes is not None else max(k, num_top)
    raw_kept, kept, _ = scan(head, changes, raw_k=num_raw, edited_k=k)
    raw_lse = fold(raw_kept.parts)
    top_ids, top_raw = unpack(best_keys(head, None, raw_kept.best, num_raw), head.vocab_size)
    if kept is None:
        ids, values, raw, lse, kept = top_ids, top_raw, top_raw, raw_lse, raw_kept
    else:
        ids, values = unpack(best_keys(head, changes, kept.best, k), head.vocab_size)
        raw, lse = raw_of_ids(head, ids), fold(kept.parts)
    drawn_ids, drawn_raw = (None, None) if uniforms is None else draw(head, changes, kept.parts, uniforms)
    return HeadTopK(
        ids=ids[:, :k],
        values=values[:, :k],
        raw=raw[:, :k],
        lse=lse,
        raw_lse=raw_lse,
        drawn_ids=drawn_ids,
        drawn_raw=drawn_raw,
        top_ids=top_ids[:, :num_top],
        top_raw=top_raw[:, :num_top],
    )


def head_logits(
    hidden: Tensor, weight: Tensor, *, edits: LogitEdits | None, temperature: Tensor | None, soft_cap: float | None
) -> tuple[Tensor, Tensor]:
    head = head_of(hidden, weight, soft_cap)
    changes = prepare(edits, temperature, head.num_rows, head.vocab_size)
    raw, edited = (
        torch.empty(head.num_rows, head.vocab_size, dtype=torch.float32, device=hidden.device) for _ in range(2)
    )
    options = tile_options(head, best=False, edited=changes is not None)
    launch(
        _logits_kernel,
        (triton.cdiv(head.num_rows, options["BLOCK_M"]), triton.cdiv(head.vocab_size, options["BLOCK_N"])),
        head, changes, raw, edited,
        **options,
    )  # fmt: skip
    return raw, edited
