"""A fixed random workload: N streams at once, each with its own prompt of random token ids and a fixed answer length.

Lengths are in tokens. The same seed gives the same prompts on every machine; no two prompts of a run begin alike, so
that the prefix cache has nothing to give.
"""

import random
from dataclasses import dataclass

from polyserve.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What `polyserve bench throughput` asks of a model."""

    num_streams: list[int] = option([1], "requests at a time; several, as 1,8,32, are measured one after another")
    input_len: int = option(128, "tokens of each prompt")
    output_len: int = option(64, "tokens of each answer")
    seed: int = option(0, "of the random prompts")

    def __post_init__(self) -> None:
        for name in ("input_len", "output_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for count in self.num_streams:
            if count < 1:
                raise ValueError(f"num_streams must be at least 1, got {count}")


def random_prompts(count: int, *, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """`count` prompts of `length` token ids, no two with the same first one while the vocabulary lasts."""
    generator = random.Random(seed)
    first_ids = generator.sample(range(vocab_size), min(count, vocab_size))
    return [[first_ids[row % vocab_size], *generator.choices(range(vocab_size), k=length - 1)] for row in range(count)]
