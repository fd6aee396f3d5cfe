"""Counter-based random numbers: Philox4x32-10 in 64-bit integers, all rows at once.

Block    number b of a row gives four 32-bit words: counter (b, choice, position, purpose), key (low, high half of seed)
Round    c0, c1, c2, c3 = high(M1 c2) ^ c1 ^ k0, low(M1 c2), high(M0 c0) ^ c3 ^ k1, low(M0 c0);  k0, k1 += W0, W1
Uniform  the upper 23 bits of a word, n: (2n + 1) / 2**24, which float32 holds exactly
Source   Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011)
Shapes   S rows
"""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # M0, M1
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # W0, W1: golden ratio, sqrt(3) - 1
_ROUNDS = 10
_LOW_32 = 0xFFFFFFFF
_LOW_16 = 0xFFFF


def random_uniform(seeds: Tensor, choices: Tensor, positions: Tensor, *, purpose: int, count: int) -> Tensor:
    num_blocks = -(-count // 4)
    counter = torch.empty(4, len(seeds), num_blocks, dtype=torch.int64, device=seeds.device)
    counter[0] = torch.arange(num_blocks, device=seeds.device)
    counter[1] = choices[:, None]
    counter[2] = positions[:, None]
    counter[3] = purpose
    key = torch.stack((seeds & _LOW_32, (seeds >> 32) & _LOW_32))[..., None]  # [2, S, 1]
    words = philox(counter, key).movedim(0, -1).flatten(1)[:, :count]  # [S, count]
    return ((words >> 9) * 2 + 1).float() * 2.0**-24


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """The words [4, ...] of each counter [4, ...] under its key [2, ...]. All are int64 that hold 0 to 2**32 - 1."""
    multipliers, steps = (
        torch.tensor(pair, device=counter.device).view(2, *[1] * (counter.dim() - 1))
        for pair in (_MULTIPLIERS, _KEY_STEPS)
    )
    even, odd = counter[0::2], counter[1::2]  # (c0, c2), (c1, c3)
    for _ in range(_ROUNDS):
        high, low = _multiply(even, multipliers)
        even, odd = high.flip(0) ^ odd ^ key, low.flip(0)
        key = (key + steps) & _LOW_32
    return torch.stack((even, odd), dim=1).flatten(0, 1)


def _multiply(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of 32-bit numbers; b in halves, because int64 has a sign to stay clear of."""
    lower = a * (b & _LOW_16)  # below 2**48
    upper = a * (b >> 16) + (lower >> 16)  # below 2**49
    return upper >> 16, ((upper & _LOW_16) << 16) | (lower & _LOW_16)
