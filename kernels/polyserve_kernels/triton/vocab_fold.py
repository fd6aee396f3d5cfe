"""Raw logits in tiles, and their log-sum-exp: what every operation on a vocabulary shares, so that all have its bits.

    tile        (maximum m, sum of exp(x - m)) of each SUM_IDS ids of a row
    row         M = max m,  total = sum of sums * exp(m - M),  lse = M + log(total)
Bits    both sums are of whole numbers, in units of 2**-40: whole numbers add up to the same in any order, so that no
        block size, number of warps or layout of a compiled kernel shows in a log-sum-exp. Logits are `product_tile`'s
Errors  cutting off loses less than 2**-40 of a row's largest exponential for each id; the rest is float32
Range   a row's total is at most 2**62 units: vocabularies of up to 2**22 ids
NaN     a logit that is nan or inf makes its row's log-sum-exp nan. A row of -inf alone has -inf
Shapes  S rows   V vocabulary   C channels   P = ceil(V / SUM_IDS) parts of a row
        hidden [S, C]   weight [V, C]   parts [2, S, P] float32: maxima, then sums
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.numbers import tanh
from polyserve_kernels.triton.product import product_tile

SUM_IDS = 128  # ids of a part
MAX_VOCAB = 2**22

LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # in place of -inf, so that a difference of maxima is never nan
_SUM_IDS = tl.constexpr(SUM_IDS)
_UNIT = tl.constexpr(2.0**-40)
_UNITS = tl.constexpr(2.0**40)  # in 1
_NOT_A_NUMBER = tl.constexpr(2**50)  # units that stand for nan: more than a part of numbers can have


@triton.jit
def logit_tile(
    hidden_ptr, weight_ptr, rows, ids, S, V, C, hidden_stride, weight_stride, soft_cap,
    CAPPED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr = False,
):  # fmt: skip
    """Raw logits [BLOCK_M, BLOCK_N] of rows and ids, -inf beyond the vocabulary.  soft_cap counts if CAPPED."""
    raw = product_tile(
        hidden_ptr, weight_ptr, rows, ids, S, V, C, hidden_stride, weight_stride, BLOCK_M, BLOCK_N, BLOCK_K,
        EVEN_K,
    )  # fmt: skip
    if CAPPED:
        raw = soft_cap * tanh(tl.div_rn(raw, soft_cap))
    return tl.where((ids < V)[None, :], raw, float("-inf"))


@triton.jit
def exponential_units(x, m):
    """exp(x - m) in units, int64: 0 to 2**40 where m >= x, _NOT_A_NUMBER where that is nan or inf."""
    e = tl.exp(x - m)
    return tl.where(e <= 1.0, e * _UNITS, _NOT_A_NUMBER).to(tl.int64)


@triton.jit
def share_units(sums, m, row_m):
    """sums * exp(m - row_m) of parts in units, int64: 0 to SUM_IDS * 2**40, or -1 where that is nan or inf."""
    share = sums * tl.exp(m - row_m)
    return tl.where(share <= _SUM_IDS, share * _UNITS, -1.0).to(tl.int64)


@triton.jit
def log_sum_exp(m, units):
    """m + log(units), float32; -inf where there are none."""
    return m + tl.log(units.to(tl.float32) * _UNIT)


@triton.jit
def tile_sums(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Maxima and sums [BLOCK_M, BLOCK_N / SUM_IDS] float32 of a tile [BLOCK_M, BLOCK_N] that begins with a part."""
    x = tl.reshape(x, (BLOCK_M, BLOCK_N // _SUM_IDS, _SUM_IDS))
    m = tl.maximum(tl.max(x, 2), LOWEST)
    units = tl.sum(exponential_units(x, m[:, :, None]), 2)
    return m, tl.where(units < _NOT_A_NUMBER, units.to(tl.float32) * _UNIT, float("nan"))


@triton.jit
def store_sums(parts_ptr, x, rows, first_part, S, P, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Write what `tile_sums` gives of a tile whose first id begins part first_part."""
    m, sums = tile_sums(x, BLOCK_M, BLOCK_N)
    part = first_part + tl.arange(0, BLOCK_N // _SUM_IDS)
    row = rows.to(tl.int64)[:, None]
    inside = (rows < S)[:, None] & (part < P)[None, :]
    tl.store(parts_ptr + row * P + part[None, :], m, mask=inside)
    tl.store(parts_ptr + (S + row) * P + part[None, :], sums, mask=inside)


@triton.jit
def _fold_kernel(parts_ptr, lse_ptr, S, P, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    maxima_ptrs, sums_ptrs = (parts_ptr + row * P)[:, None], (parts_ptr + (S + row) * P)[:, None]
    row_mask, p = (row < S)[:, None], tl.arange(0, BLOCK_P)[None, :]
    m = tl.full((BLOCK_M, BLOCK_P), LOWEST, dtype=tl.float32)
    for start in range(0, P, BLOCK_P):
        m = tl.maximum(m, tl.load(maxima_ptrs + start + p, mask=row_mask & (p < P - start), other=LOWEST))
    m = tl.max(m, 1)
    total = tl.zeros((BLOCK_M, BLOCK_P), dtype=tl.int64)
    is_number = total == 0
    for start in range(0, P, BLOCK_P):
        inside = row_mask & (p < P - start)
        part_m = tl.load(maxima_ptrs + start + p, mask=inside, other=LOWEST)
        units = share_units(tl.load(sums_ptrs + start + p, mask=inside, other=0.0), part_m, m[:, None])
        total += units
        is_number &= units >= 0
    is_number = tl.min(is_number.to(tl.int32), 1) == 1
    lse = log_sum_exp(m, tl.where(is_number, tl.sum(total, 1), 0))
    tl.store(lse_ptr + row, tl.where(is_number, lse, float("nan")), mask=row < S)


def num_parts(vocab_size: int) -> int:
    return -(-vocab_size // SUM_IDS)


def empty_parts(num_rows: int, vocab_size: int, device: torch.device) -> Tensor:
    """Parts [2, S, P] for `store_sums` to fill.  Raises ValueError for a vocabulary whose totals would not fit."""
    if vocab_size > MAX_VOCAB:
        raise ValueError(f"a vocabulary must have at most {MAX_VOCAB} ids for Triton's log-sum-exp, got {vocab_size}")
    return torch.empty(2, num_rows, num_parts(vocab_size), dtype=torch.float32, device=device)


def fold(parts: Tensor) -> Tensor:
    """The log-sum-exp [S] of each row's parts [2, S, P]."""
    _, num_rows, parts_of_row = parts.shape
    lse = torch.empty(num_rows, dtype=torch.float32, device=parts.device)
    launch(
        _fold_kernel, (triton.cdiv(num_rows, 4),), parts, lse, num_rows, parts_of_row,
        BLOCK_M=4, BLOCK_P=512, num_warps=4, num_stages=2,
    )  # fmt: skip
    return lse
