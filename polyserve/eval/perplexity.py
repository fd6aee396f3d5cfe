"""How well a model predicts texts: perplexity and bits per byte, from the log-probabilities of every token.

A text longer than a window is read in windows that overlap: each token is scored once, by the first window that has it,
and so with at least `window - stride` tokens before it, but for those at the text's beginning. Every window begins with
the token that the tokenizer puts before texts (BOS). Where there is none, nothing predicts a text's first token: it is
not scored, nor are its bytes counted.

perplexity     exp(-mean log p of a token): depends on how the tokenizer cuts the text
bits per byte  -sum log2 p / bytes: compares models whose vocabularies differ
Source   https://arxiv.org/abs/2012.15613, section 3 (why perplexity does not), https://huggingface.co/docs/transformers/perplexity
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from polyserve.config import option
from polyserve.output import LogprobEntry

Score = Callable[[list[list[int]]], Iterable[Sequence[LogprobEntry | None]]]  # of each prompt, one entry a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How long texts are cut."""

    window: int = option(1024, "tokens that are scored together, the one before the text included")
    stride: int = option(512, "tokens from one window to the next; the rest of a window is context alone")

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ValueError(f"window must be at least 2, got {self.window}")
        if not 0 < self.stride < self.window:
            raise ValueError(f"stride must be from 1 to window - 1, got {self.stride}")


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of a text, or of several together."""

    num_tokens: int
    num_bytes: int
    nats: float  # - sum log p

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.num_tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    def __add__(self, other: "Prediction") -> "Prediction":
        return Prediction(self.num_tokens + other.num_tokens, self.num_bytes + other.num_bytes, self.nats + other.nats)


def predict(score: Score, token_ids: Sequence[int], windows: Windows, *, bos_id: int | None) -> Prediction:
    """Score one text.  token_ids: without special tokens.  bos_id: what every window begins with."""
    before = [] if bos_id is None else [bos_id]
    size = windows.window - len(before)
    starts = range(0, max(1, len(token_ids) - size + windows.stride), windows.stride)
    prompts = [[*before, *token_ids[start : start + size]] for start in starts]
    total, scored = Prediction(0, 0, 0.0), 0
    for start, entries in zip(starts, score(prompts), strict=True):
        for entry in entries[len(before) + scored - start :]:
            if entry is not None:
                total += Prediction(1, len(entry.bytes), -entry.logprob)
        scored = min(start + size, len(token_ids))
    return total
