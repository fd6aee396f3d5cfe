"""Counter-based random numbers."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.reference import random as reference
from polyserve_kernels.reference.random import philox
from polyserve_kernels.triton.random import philox as philox_in_a_kernel
from support.poison import poisoned_memory

pytestmark = pytest.mark.usefixtures("backend")

# https://github.com/DEShawResearch/random123, tests/kat_vectors, philox4x32 10: counter, key, words
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def uniform(seed: int, choice: int, position: int, *, purpose: int = 0, count: int = 8) -> Tensor:
    return ops.random_uniform(*(torch.tensor([x]) for x in (seed, choice, position)), purpose, count)[0]


@triton.jit
def philox_kernel(numbers_ptr, words_ptr):
    """numbers: the counter's four, then the key's two."""
    at = tl.arange(0, 1)
    c0, c1 = tl.load(numbers_ptr + at).to(tl.uint32), tl.load(numbers_ptr + 1 + at).to(tl.uint32)
    c2, c3 = tl.load(numbers_ptr + 2 + at).to(tl.uint32), tl.load(numbers_ptr + 3 + at).to(tl.uint32)
    k0, k1 = tl.load(numbers_ptr + 4 + at).to(tl.uint32), tl.load(numbers_ptr + 5 + at).to(tl.uint32)
    w0, w1, w2, w3 = philox_in_a_kernel(c0, c1, c2, c3, k0, k1)
    tl.store(words_ptr + at, w0.to(tl.int64))
    tl.store(words_ptr + 1 + at, w1.to(tl.int64))
    tl.store(words_ptr + 2 + at, w2.to(tl.int64))
    tl.store(words_ptr + 3 + at, w3.to(tl.int64))


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_philox_gives_the_published_words(backend, counter, key, words):
    if backend == "reference":
        ours = philox(torch.tensor(counter)[:, None], torch.tensor(key)[:, None])[:, 0]
    else:
        ours = torch.empty(4, dtype=torch.int64)
        philox_kernel[(1,)](torch.tensor([*counter, *key]), ours)
    assert ours.tolist() == list(words)


def test_a_uniform_is_the_odd_24_bit_number_around_a_words_upper_bits():
    words = philox(torch.tensor([[0, 0], [7, 7], [9, 9], [3, 3]]), torch.tensor([[5, 5], [0, 0]]))[:, 0]
    expected = ((words >> 9) * 2 + 1).double() / 2**24
    assert torch.equal(uniform(5, 7, 9, purpose=3, count=4).double(), expected)


def test_numbers_depend_on_seed_choice_position_and_purpose():
    different = [uniform(1, 2, 3), uniform(2, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4), uniform(1, 2, 3, purpose=1)]
    assert len({tuple(x.tolist()) for x in different}) == 5


def test_the_upper_half_and_the_sign_of_a_seed_count():
    assert len({tuple(uniform(seed, 0, 0).tolist()) for seed in (0, 1 << 32, -1, 2**63 - 1, -(2**63))}) == 5


def test_a_row_does_not_depend_on_its_company_or_on_the_count():
    seeds, choices, positions = torch.randint(-(2**62), 2**62, (50,)), torch.arange(50) % 3, torch.arange(50) * 77
    together = ops.random_uniform(seeds, choices, positions, 4, 13)
    alone = ops.random_uniform(seeds[17:18], choices[17:18], positions[17:18], 4, 3)
    assert torch.equal(together[17:18, :3], alone)


def test_numbers_lie_strictly_between_0_and_1_and_are_spread_evenly():
    u = ops.random_uniform(torch.arange(100), torch.zeros(100).long(), torch.zeros(100).long(), 0, 1000).double()
    assert u.min() > 0
    assert u.max() < 1
    counts = torch.histc(u, bins=64, min=0, max=1)
    chi_squared = ((counts - u.numel() / 64) ** 2 / (u.numel() / 64)).sum().item()
    assert chi_squared < 103.4  # 99.9 % point at 63 degrees of freedom


def test_asking_for_no_rows_or_no_numbers_gives_none():
    none = torch.zeros(0, dtype=torch.int64)
    assert ops.random_uniform(none, none, none, 0, 5).shape == (0, 5)
    assert uniform(1, 2, 3, count=0).shape == (0,)


def test_every_backend_gives_the_bits_of_the_reference():
    extreme = torch.tensor([0, 2**31 - 1, 2**31, 2**32 - 1])
    seeds = torch.tensor([-1, 2**63 - 1, -(2**63), 12345])
    ours = ops.random_uniform(seeds, extreme, extreme.flip(0), 2**32 - 1, 601)
    expected = reference.random_uniform(seeds, extreme, extreme.flip(0), purpose=2**32 - 1, count=601)
    assert torch.equal(ours, expected)


def test_every_number_is_written():
    seeds = torch.arange(3)
    with poisoned_memory():
        ours = ops.random_uniform(seeds, seeds, seeds, 1, 7)
    assert ((ours > 0) & (ours < 1)).all()
