"""Cross-entropy of hidden states times the vocabulary, with gradients, without ever holding all logits.

Forward   one pass over the vocabulary, as for `token_logprobs`
Backward  logits are computed again, for IDS ids and ROWS rows at a time. A kernel turns them into their gradients and
          rounds these to the operands' dtype:  d = grad (softmax - [id = target]) + grad_lse softmax,  with a soft cap
          times 1 - (logit / soft_cap)^2,  softmax = exp(logit - lse).  Two dense products, in float32, then add
          d weight  to d_hidden and  d^T hidden  to d_weight, in ascending order of ids and of rows
Spec      reference/linear_cross_entropy.py
Source    recomputing instead of keeping logits: Wijmans et al., https://arxiv.org/abs/2411.09009. There sums are taken
          under locks; chunks and dense products have one order, so two runs have the same bits
Memory    [ROWS, IDS] and [IDS, C], whatever T and V are, besides the gradients, d_hidden's in float32
Traffic   backward: d written once and read twice, the weight once for ROWS rows, hidden twice for IDS ids
Flops     forward 2 T V C, backward 6 T V C
Shapes    T rows   V ids   C channels   hidden [T, C]   weight [V, C]   targets [T]   d [rows, ids]
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.cross_entropy import RowSlopes, chunks, grad_dtype_of, linear_cross_entropy_of
from polyserve_kernels.triton.head import Head, head_of, raw_tile
from polyserve_kernels.triton.launch import INTERPRETED, architecture, launch
from polyserve_kernels.triton.numbers import rounded
from polyserve_kernels.triton.product import tile_place
from polyserve_kernels.triton.tuning import LOGIT_GRADIENTS, tuned
from polyserve_kernels.triton.vocab_fold import fold
from polyserve_kernels.triton.vocab_scan import MAX_ROWS, scan

ROWS, IDS = 8192, 4096  # of d, which is 64 MiB in bfloat16
_INTERPRETED_IDS = 1024  # of a tile: the interpreter takes as long for a small operation as for a large one


@triton.jit
def _logit_gradients_kernel(
    head, targets_ptr, lse_ptr, grad_ptr, grad_lse_ptr, d_ptr, d_stride, first_id,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    row_tile, id_tile = tile_place(
        tl.program_id(0), tl.cdiv(head.num_rows, BLOCK_M), tl.cdiv(head.vocab_size, BLOCK_N), GROUP
    )
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    ids = id_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    logits = raw_tile(head, rows, ids, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
    there = rows < head.num_rows
    lse = tl.load(lse_ptr + rows, mask=there, other=0.0)[:, None]
    grad = tl.load(grad_ptr + rows, mask=there, other=0.0)[:, None]
    grad_lse = tl.load(grad_lse_ptr + rows, mask=there, other=0.0)[:, None]
    # int32 holds every id; of a target that is none, grad is 0
    target = (tl.load(targets_ptr + rows, mask=there, other=-1) - first_id).to(tl.int32)[:, None]
    softmax = tl.exp(logits - lse)
    d = grad * tl.where(target == ids[None, :], softmax - 1, softmax) + grad_lse * softmax
    if head.soft_cap is not None:
        share = logits * (1 / head.soft_cap)
        d *= 1 - share * share
    d_ptrs = d_ptr + (rows[:, None] * d_stride + ids[None, :])  # int32: at most ROWS * IDS
    tl.store(d_ptrs, rounded(d, d_ptr.dtype.element_ty), mask=there[:, None] & (ids < head.vocab_size)[None, :])


def _write_logit_gradients(d: Tensor, head: Head, targets: Tensor, slopes: RowSlopes, first_id: int) -> None:
    """Fill d [rows, ids] for a head of these rows and ids.  targets count from first_id before the head's first id."""
    options = _options(head)
    launch(
        _logit_gradients_kernel,
        (triton.cdiv(head.num_rows, options["BLOCK_M"]) * triton.cdiv(head.vocab_size, options["BLOCK_N"]),),
        head, targets, slopes.lse, slopes.grad, slopes.grad_lse, d, d.stride(0), first_id,
        GROUP=8,
        **options,
    )  # fmt: skip


def _options(head: Head) -> dict[str, int | bool]:
    tile = tuned(LOGIT_GRADIENTS, architecture(head.hidden.device))
    return (replace(tile, block_n=_INTERPRETED_IDS) if INTERPRETED else tile).options(head.hidden.dtype, head.channels)


def _forward(hidden: Tensor, weight: Tensor, targets: Tensor, soft_cap: float | None) -> tuple[Tensor, Tensor]:
    lse, target_logits = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(2))
    for rows in chunks(len(hidden), MAX_ROWS):
        head = head_of(hidden[rows], weight, soft_cap)
        kept, _, target_logits[rows] = scan(head, None, raw_k=0, targets=targets[rows])
        lse[rows] = fold(kept.parts)
    return lse, target_logits


def _backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    slopes: RowSlopes,
    soft_cap: float | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    num_rows, channels = hidden.shape
    vocab_size, targets = len(weight), targets.contiguous()
    d_hidden = hidden.new_zeros(num_rows, channels, dtype=torch.float32) if needed[0] else None
    d_weight = weight.new_empty(vocab_size, channels, dtype=grad_dtype_of(weight)) if needed[1] else None
    workspace = hidden.new_empty(min(num_rows, ROWS), min(vocab_size, IDS))
    sums = weight.new_empty(min(vocab_size, IDS) if needed[1] else 0, channels, dtype=torch.float32)
    for ids in chunks(vocab_size, IDS):
        part = weight[ids]
        d_part = sums[: len(part)].zero_()
        for rows in chunks(num_rows, ROWS):
            head = head_of(hidden[rows], part, soft_cap)
            d = workspace[: head.num_rows, : head.vocab_size]
            _write_logit_gradients(d, head, targets[rows], slopes.of(rows), ids.start)
            if d_hidden is not None:
                _add_product(d_hidden[rows], d, head.weight)
            if d_weight is not None:
                _add_product(d_part, d.t(), head.hidden)
        if d_weight is not None:
            d_weight[ids] = d_part
    return d_hidden, d_weight


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, with float32 sums of the operands as they are.  total is float32."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.device.type == "cpu":  # which cannot add products of other dtypes to float32
        total.addmm_(a.float(), b.float())
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


linear_cross_entropy = linear_cross_entropy_of(_forward, _backward)
