"""Which row of which stream a sample is: a pure function of the sample's number, the plan and the seed.

block        `block` samples, in which each stream of a stage has its exact number of rows, in an order of their own
stage        a span of samples; it begins a new block. Streams go on where the stage before has left them
row          of a stream: in each epoch every row comes once, in another order
Nothing is remembered: sample n is found without its predecessors, so a run goes on after a restart, and on another
number of processes, with the very rows that would have come.
Sources      block-deterministic mixing: https://levanter.readthedocs.io; permutations by a Feistel network that walks
             its cycles: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002)
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate

from polyserve.errors import TrainingError

_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    stream: str
    epoch: int
    row: int


@dataclass(frozen=True, slots=True)
class StagePlan:
    name: str
    num_samples: int
    counts: Mapping[str, int]  # rows of each stream in a block


def apportion(shares: Mapping[str, float], block: int, *, stage: str) -> dict[str, int]:
    """Whole rows of each stream in a block: what is over after rounding down goes to the largest remainders."""
    total = sum(shares.values())
    exact = {name: share / total * block for name, share in shares.items() if share > 0}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: block - sum(counts.values())]:
        counts[name] += 1
    for name, count in counts.items():
        if not count:
            raise TrainingError(
                f"stages: {name} has less than one row in a block of {block} in stage {stage}: raise block to "
                f"{round(total / shares[name])} or its share"
            )
    return counts


class Mixture:
    """The samples of all stages."""

    def __init__(self, stages: Sequence[StagePlan], num_rows: Mapping[str, int], *, seed: int) -> None:
        """num_rows: of each stream."""
        self.stages, self._num_rows, self._seed = tuple(stages), num_rows, seed
        self._firsts = list(accumulate((stage.num_samples for stage in stages), initial=0))
        self._drawn: list[dict[str, int]] = [{}]  # before each stage
        for number, stage in enumerate(stages):
            before, here = self._drawn[-1], self._drawn_in(number, stage.num_samples)
            self._drawn.append({name: before.get(name, 0) + here.get(name, 0) for name in before | here})

    def locate(self, index: int) -> Sample:
        """Sample `index`, counted from the first one of the first stage."""
        number = bisect_right(self._firsts, index) - 1
        counts = self.stages[number].counts
        block, place = divmod(index - self._firsts[number], sum(counts.values()))
        stream, earlier = self._block(number, block)[place]
        return self._row(stream, self._drawn[number].get(stream, 0) + block * counts[stream] + earlier)

    def drawn(self, stage: int) -> dict[str, int]:
        """Rows that each stream has given up to the end of a stage."""
        return self._drawn[stage + 1]

    def _row(self, stream: str, ordinal: int) -> Sample:
        epoch, place = divmod(ordinal, self._num_rows[stream])
        return Sample(stream, epoch, _permutation(self._num_rows[stream], f"{self._seed}/{stream}/{epoch}").of(place))

    def _block(self, number: int, block: int) -> list[tuple[str, int]]:
        """A block in its order: each stream, and how many of its rows come before in the block."""
        stage = self.stages[number]
        return _shuffled(tuple(stage.counts.items()), f"{self._seed}//{stage.name}/{block}")

    def _drawn_in(self, number: int, num_samples: int) -> dict[str, int]:
        """Rows of each stream among the first samples of a stage."""
        counts = self.stages[number].counts
        blocks, rest = divmod(num_samples, sum(counts.values()))
        begun = Counter(stream for stream, _ in self._block(number, blocks)[:rest])
        return {stream: blocks * count + begun[stream] for stream, count in counts.items()}


class Permutation:
    """A fixed order of 0 to size - 1 that a key decides, place by place, without a table."""

    def __init__(self, size: int, key: str) -> None:
        self._size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._keys = [blake2b(f"{key}/{number}".encode(), digest_size=16).digest() for number in range(_ROUNDS)]

    def of(self, place: int) -> int:
        """What stands at a place."""
        mask = (1 << self._half_bits) - 1
        while True:
            left, right = place >> self._half_bits, place & mask
            for key in self._keys:
                digest = blake2b(right.to_bytes(8, "little"), key=key, digest_size=8).digest()
                left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
            place = left << self._half_bits | right
            if place < self._size:  # else go on along the cycle, which comes back inside
                return place


@lru_cache(maxsize=4096)
def _permutation(size: int, key: str) -> Permutation:
    return Permutation(size, key)


@lru_cache(maxsize=4)  # a block may be long, and steps go through blocks in order
def _shuffled(counts: tuple[tuple[str, int], ...], key: str) -> list[tuple[str, int]]:
    streams = [stream for stream, count in counts for _ in range(count)]
    order, seen = Permutation(len(streams), key), Counter[str]()
    block = []
    for place in range(len(streams)):
        stream = streams[order.of(place)]
        block.append((stream, seen[stream]))
        seen[stream] += 1
    return block
