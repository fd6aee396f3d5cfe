"""Counter-based random numbers: Philox4x32-10 in 32-bit integers, for whole rows or inside another kernel's tile.

Block    number b of a row gives four words: counter (b, choice, position, purpose), key (low, high half of the seed)
Round    c0, c1, c2, c3 = high(M1 c2) ^ c1 ^ k0, low(M1 c2), high(M0 c0) ^ c3 ^ k1, low(M0 c0);  k0, k1 += W0, W1
Uniform  the upper 23 bits of a word, n: (2n + 1) / 2**24, which float32 holds exactly
Spec     reference/random.py
Source   Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011)
Traffic  4 S count bytes written, each once
Shapes   seeds, choices, positions [S]   numbers [S, count]
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.launch import launch

_M0, _M1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
_W0, _W1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)  # golden ratio, sqrt(3) - 1


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """The four words of each counter under its key: uint32 all, of shapes that broadcast."""
    for _ in tl.static_range(10):
        low0, low1 = tl.mul(c0, _M0, sanitize_overflow=False), tl.mul(c2, _M1, sanitize_overflow=False)
        c0, c2 = tl.umulhi(c2, _M1) ^ c1 ^ k0, tl.umulhi(c0, _M0) ^ c3 ^ k1
        c1, c3 = low1, low0
        k0, k1 = tl.add(k0, _W0, sanitize_overflow=False), tl.add(k1, _W1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def uniform(word):
    """A word as a float32 strictly inside (0, 1)."""
    return ((word >> 9) * 2 + 1).to(tl.int32).to(tl.float32) * (1 / 16777216)


@triton.jit
def uniform_blocks(seed, choice, position, purpose, block):
    """A row's numbers 4 b, 4 b + 1, 4 b + 2 and 4 b + 3 for each b of `block`, as four tiles. Integers of any width."""
    low, high = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    purpose = tl.to_tensor(purpose).to(tl.uint32)
    w0, w1, w2, w3 = philox(block.to(tl.uint32), choice.to(tl.uint32), position.to(tl.uint32), purpose, low, high)
    return uniform(w0), uniform(w1), uniform(w2), uniform(w3)


@triton.jit
def _random_uniform_kernel(seed_ptr, choice_ptr, position_ptr, out_ptr, purpose, count, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    seed, choice, position = tl.load(seed_ptr + row), tl.load(choice_ptr + row), tl.load(position_ptr + row)
    u0, u1, u2, u3 = uniform_blocks(seed, choice, position, purpose, first + tl.arange(0, BLOCK))
    numbers = tl.reshape(tl.join(tl.join(u0, u2), tl.join(u1, u3)), (4 * BLOCK,))  # u0 u1 u2 u3 of each block in turn
    cols = 4 * first.to(tl.int64) + tl.arange(0, 4 * BLOCK)
    tl.store(out_ptr + row * count + cols, numbers, mask=cols < count)


def random_uniform(seeds: Tensor, choices: Tensor, positions: Tensor, *, purpose: int, count: int) -> Tensor:
    num_rows = seeds.shape[0]
    numbers = torch.empty(num_rows, count, dtype=torch.float32, device=seeds.device)
    block = min(128, triton.next_power_of_2(triton.cdiv(max(count, 1), 4)))
    launch(
        _random_uniform_kernel,
        (num_rows, triton.cdiv(count, 4 * block)),
        seeds.contiguous(),
        choices.contiguous(),
        positions.contiguous(),
        numbers,
        purpose,
        count,
        BLOCK=block,
        num_warps=4 if block == 128 else 1,
        num_stages=1,
    )
    return numbers
