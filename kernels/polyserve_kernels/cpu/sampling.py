"""What sampling and scoring need of the head (kernels/csrc/head.cpp).   hidden [S, C]   weight [V, C]"""

from typing import Any

import torch
from torch import Tensor

from polyserve_kernels.cpu.library import VOCAB_TILE, Head, call, rows
from polyserve_kernels.cpu.packed import structs
from polyserve_kernels.types import HeadTopK, LogitEdits, PackedWeight


def num_vocab_tiles(vocab_size: int, channels: int) -> int:  # noqa: ARG001  (other backends' tiles depend on it)
    return -(-vocab_size // VOCAB_TILE)


def head_topk(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    *,
    k: int,
    temperature: Tensor | None,
    edits: LogitEdits | None,
    uniforms: Tensor | None,
    num_top: int,
    soft_cap: float | None,
) -> HeadTopK:
    num_rows = len(hidden)
    ids, values, raw = torch.empty(num_rows, k, dtype=torch.int64), torch.empty(num_rows, k), torch.empty(num_rows, k)
    top_ids, top_raw = torch.empty(num_rows, num_top, dtype=torch.int64), torch.empty(num_rows, num_top)
    lse, raw_lse = torch.empty(num_rows), torch.empty(num_rows)
    drawn_ids = None if uniforms is None else torch.empty(num_rows, dtype=torch.int64)
    drawn_raw = None if uniforms is None else torch.empty(num_rows)
    uniforms = None if uniforms is None else uniforms.contiguous()
    _run(
        hidden, weight, temperature, edits, soft_cap, K=k, num_top=num_top, ids=ids, values=values, raw=raw,
        top_ids=top_ids, top_raw=top_raw, lse=lse, raw_lse=raw_lse, uniforms=uniforms, drawn_ids=drawn_ids,
        drawn_raw=drawn_raw,
    )  # fmt: skip
    return HeadTopK(
        ids=ids, values=values, raw=raw, lse=lse, raw_lse=raw_lse, drawn_ids=drawn_ids, drawn_raw=drawn_raw,
        top_ids=top_ids, top_raw=top_raw,
    )  # fmt: skip


def head_logits(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    *,
    edits: LogitEdits | None,
    temperature: Tensor | None,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor]:
    raw, edited = torch.empty(2, len(hidden), len(weight))
    _run(hidden, weight, temperature, edits, soft_cap, all_raw=raw, all_edited=edited)
    return raw, edited


def scores(
    hidden: Tensor, weight: Tensor | PackedWeight, targets: Tensor, *, num_top: int, soft_cap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row: log-sum-exp [S], its target's logit [S] (-inf if there is no such id), its best ids and logits."""
    num_rows = len(hidden)
    top_ids, top_raw = torch.empty(num_rows, num_top, dtype=torch.int64), torch.empty(num_rows, num_top)
    chosen, raw_lse = torch.full((num_rows,), -torch.inf), torch.empty(num_rows)
    _run(
        hidden, weight, None, None, soft_cap, num_top=num_top, top_ids=top_ids, top_raw=top_raw, raw_lse=raw_lse,
        targets=targets.contiguous(), target_raw=chosen,
    )  # fmt: skip
    return raw_lse, chosen, top_ids, top_raw


def _run(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    temperature: Tensor | None,
    edits: LogitEdits | None,
    soft_cap: float | None,
    **fields: Any,
) -> None:
    hidden, weight = rows(hidden), rows(weight) if isinstance(weight, Tensor) else weight
    temperature = None if temperature is None else temperature.contiguous()
    changes = {} if edits is None else _in_order(edits)
    call(
        "ps_head", Head, hidden=hidden, weight=structs(weight), temperature=temperature, soft_cap=soft_cap,
        S=len(hidden), C=hidden.shape[1], V=len(weight), hidden_stride=hidden.stride(0), dtype=hidden.dtype, **changes,
        **fields,
    )  # fmt: skip


def _in_order(edits: LogitEdits) -> dict[str, Any]:
    """Entries in ascending order of id, so that a tile's are one run."""
    ids, order = edits.ids.sort()
    return {
        "edit_ids": ids,
        "edit_rows": edits.rows[order],
        "edit_repetition": edits.repetition[order],
        "edit_bias": edits.bias[order],
        "allowed": None if edits.allowed is None else edits.allowed.contiguous(),
        "num_edits": len(ids),
    }
