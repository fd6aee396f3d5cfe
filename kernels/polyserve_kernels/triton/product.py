"""A tile of x w^T: the one loop over K of every dense product and every logit, so that all have its bits.

Shapes    x [T, K]   w [N, K], both row by row with K contiguous   tile [BLOCK_M, BLOCK_N] float32
Bits      sums run over K in ascending order, whatever BLOCK_M and BLOCK_N are, and on a GPU whatever BLOCK_K is: its
          matrix instruction takes 16 of K at a time (float32 operands are added one by one). The interpreter rounds
          once a step, so there tiles that must agree have one BLOCK_K: `block_k` in `tuning.py`
Pipeline  loads are copied to shared memory stages ahead of their product; EVEN_K spares each its mask along K
"""

import triton
import triton.language as tl

from polyserve_kernels.triton.numbers import dot


@triton.jit
def product_tile(
    x_ptr, w_ptr, rows, cols, T, N, K, x_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr = False,
):  # fmt: skip
    """Rows `rows` of x times rows `cols` of w (int32 or int64 indices); 0 where either is beyond T or N.

    EVEN_K: BLOCK_K divides K.
    """
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * x_stride + k[None, :]
    w_ptrs = w_ptr + cols.to(tl.int64)[None, :] * w_stride + k[:, None]
    row_mask, col_mask = (rows < T)[:, None], (cols < N)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs + start, mask=row_mask, other=0.0)
            w = tl.load(w_ptrs + start, mask=col_mask, other=0.0)
        else:
            inside = k < K - start
            x = tl.load(x_ptrs + start, mask=row_mask & inside[None, :], other=0.0)
            w = tl.load(w_ptrs + start, mask=col_mask & inside[:, None], other=0.0)
        acc = dot(x, w, acc)
    return acc


@triton.jit
def tile_place(program, num_row_tiles, num_col_tiles, ROW_TILES: tl.constexpr):
    """Row and column of a program's tile: programs that run together share rows of x and w in the L2 cache.

    Columns of ROW_TILES row tiles are passed from left to right, then the next ROW_TILES row tiles.
    """
    group_size = ROW_TILES * num_col_tiles
    first_row = program // group_size * ROW_TILES
    height = tl.minimum(num_row_tiles - first_row, ROW_TILES)
    inside = program % group_size
    return first_row + inside % height, inside // height
