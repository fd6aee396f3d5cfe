"""A tile of x w^T: the one loop over K of every dense product and every logit, so that all have its bits.

Shapes  x [T, K]   w [N, K], both row by row with K contiguous   tile [BLOCK_M, BLOCK_N] float32
Bits    sums run over K in ascending order, whatever BLOCK_M and BLOCK_N are
"""

import triton
import triton.language as tl

from polyserve_kernels.triton.numbers import dot


@triton.jit
def product_tile(
    x_ptr, w_ptr, rows, cols, T, N, K, x_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows `rows` of x times rows `cols` of w (int32 or int64 indices); 0 where either is beyond T or N."""
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * x_stride + k[None, :]
    w_ptrs = w_ptr + cols.to(tl.int64)[None, :] * w_stride + k[:, None]
    row_mask, col_mask = (rows < T)[:, None], (cols < N)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        x = tl.load(x_ptrs + start, mask=row_mask & inside[None, :], other=0.0)
        w = tl.load(w_ptrs + start, mask=col_mask & inside[:, None], other=0.0)
        acc = dot(x, w, acc)
    return acc
