"""Counter-based random numbers: Philox4x32-10 in 64-bit integers, all rows at once.

Block b of a row is philox(counter = (b, choice, position, purpose), key = seed) and gives four 32-bit words.
Each round:  (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),  then the key grows by (W0, W1).
Source  Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011)
Shapes  S rows   words [S, 4 * blocks]
"""

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # the round's multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # the key's steps: golden ratio, sqrt(3) - 1
_ROUNDS = 10
_LOW = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]  # int64 tensors of one shape, each element 0 to 2**32 - 1


def random_uniform(seeds: Tensor, choices: Tensor, positions: Tensor, *, purpose: int, count: int) -> Tensor:
    blocks = torch.arange(-(-count // 4), device=seeds.device)
    shape = (len(seeds), len(blocks))
    counter = (blocks.expand(shape), choices[:, None].expand(shape), positions[:, None].expand(shape), torch.full_like(blocks, purpose).expand(shape))
    words = torch.stack(philox(counter, (seeds[:, None] & _LOW, (seeds[:, None] >> 32) & _LOW)), dim=-1)  # [S, blocks, 4]
    return ((words >> 9) * 2 + 1).flatten(1)[:, :count].float() * 2.0**-24


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """The four words of each counter under its key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _M0)
        high1, low1 = _multiply(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def _multiply(x: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product, in halves because int64 has a sign."""
    low = x * (by & 0xFFFF)  # < 2**48
    high = x * (by >> 16)  # < 2**48
    middle = high + (low >> 16)  # < 2**49
    return middle >> 16, ((middle << 16) | (low & 0xFFFF)) & _LOW
