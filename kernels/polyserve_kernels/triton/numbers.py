"""Rounding and products of tiles that mean the same in Triton's interpreter as on a GPU.

Products   sums are float32; float32 operands are multiplied as they are, never as TF32
Why        the interpreter cuts off where a GPU rounds to bfloat16 or float8, multiplies bfloat16 by its raw bits
           (triton issue 11584), and sums as numpy does, whose float32 bits change with a tile's size on some
           processors. So roundings are spelled out, and sums are float64, rounded once a product; a GPU build holds
           none of it
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x, float32, in dtype: rounded to the nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, nearest, bits).to(tl.float32, bitcast=True)
    if INTERPRETED and dtype == tl.float8e4nv:  # 3 bits behind the first one, and multiples of 2**-9 below 2**-6
        bits = x.to(tl.uint32, bitcast=True)
        size = bits & 0x7FFFFFFF
        nearest = (size + 0x7FFFF + ((size >> 20) & 1)) & 0xFFF00000
        small = ((size.to(tl.float32, bitcast=True) + 24576.0) - 24576.0).to(tl.uint32, bitcast=True)
        x = (tl.where(size < 0x3C800000, small, nearest) | (bits & 0x80000000)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot(a, b, acc):
    """acc + a b.   a [M, K], b [K, N] of one dtype; acc [M, N] float32."""
    if INTERPRETED:
        return acc + tl.dot(a.to(tl.float64), b.to(tl.float64)).to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def tanh(x):
    """tanh of a float32, within 4 units of the last place: (1 - e) / (1 + e) with e = exp(-2 |x|), a series near 0."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    e = tl.exp(-2 * tl.abs(x))
    ratio = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -ratio, ratio))
