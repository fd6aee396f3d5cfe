"""Attention of one query a sequence to the paged cache, the walk over keys shared by several programs.

How      `attend` gives the partial of each key tile, computed by whichever program; then one program for each row folds
         them in ascending order, by the expressions that attention.py folds with in its loop, so the bits are equal.
         Where the batch alone fills the GPU, one program walks all key tiles of a row and no partials are stored
Rows     the query heads that share a key head lie in one tile of rows, padded to what the matrix instruction of prefill
         takes: decoding is bound by memory
Spec     reference/attention.py    Source  Flash-Decoding (Dao et al., 2023)
Traffic  keys and values of each sequence once; partials, written and read: 2 (D + 2) float32 a query head and key tile
Shapes   q, out [S, Hq, D]   partials m, total [S, Hq, tiles] and o [S, Hq, tiles, D], float32
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.attention import Partials, attend, find_key_tiles, paged_keys
from polyserve_kernels.triton.attention_tile import LOWEST, finished, merge_maxima, merge_sums
from polyserve_kernels.triton.launch import architecture, launch
from polyserve_kernels.triton.tuning import attention_tuning
from polyserve_kernels.types import BlockCache, Scoring


@triton.jit(do_not_specialize=["num_heads", "max_tiles", "max_keys", "window"])
def _fold_kernel(
    m_ptr, total_ptr, o_ptr, lens_ptr, out_ptr, num_heads, max_tiles, max_keys, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = sequence * num_heads + head
    last = tl.minimum(tl.load(lens_ptr + sequence), max_keys) - 1
    first, end = find_key_tiles(last, last, window, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    m, total, o = tl.full((1,), LOWEST, tl.float32), tl.zeros((1,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    partials = row * max_tiles + tl.arange(0, 1)
    for _ in tl.range(first, end, num_stages=4):
        m, weight, weight_tile = merge_maxima(m, tl.load(m_ptr + partials))
        total = merge_sums(total, weight, tl.load(total_ptr + partials), weight_tile)
        o_tile = tl.load(o_ptr + partials * D + d, mask=d < D, other=0.0)
        o = merge_sums(o, weight, o_tile, weight_tile)
        partials += 1
    tl.store(out_ptr + row * D + d, finished(o, total, out_ptr.dtype.element_ty), mask=d < D)


def paged_decode(q: Tensor, cache: BlockCache, block_tables: Tensor, seq_lens: Tensor, scoring: Scoring) -> Tensor:
    num_seqs, num_heads, head_size = q.shape
    out = q.new_empty(q.shape)
    q = q if q.stride(-1) == 1 else q.contiguous()
    keys = paged_keys(cache, block_tables, seq_lens)
    tuning = attention_tuning(architecture(q.device), head_size, q.dtype)
    max_keys = keys.max_blocks * keys.block_size
    tiles = triton.cdiv(max_keys, tuning.block_n)
    if scoring.window is not None:
        tiles = min(tiles, triton.cdiv(scoring.window - 1, tuning.block_n) + 1)  # a window may begin inside a tile
    splits = min(tiles, triton.cdiv(tuning.decode_programs, max(1, num_seqs * cache.k.shape[2])))
    if splits <= 1:
        attend(q, keys, None, scoring, (out, None))
        return out
    m, total = (q.new_empty(num_seqs, num_heads, tiles, dtype=torch.float32) for _ in range(2))
    o = q.new_empty(num_seqs, num_heads, tiles, head_size, dtype=torch.float32)
    attend(q, keys, None, scoring, Partials(m, total, o, splits))
    launch(
        _fold_kernel, (num_seqs, num_heads),
        m, total, o, keys.lens, out, num_heads, tiles, max_keys, scoring.window,
        D=head_size, BLOCK_D=triton.next_power_of_2(head_size), BLOCK_N=tuning.block_n, num_warps=1, num_stages=4,
    )  # fmt: skip
    return out
