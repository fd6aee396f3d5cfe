"""How likely a model finds given text: of a continuation after its context, or of a whole text, token by token.

Context and continuation are tokenised together, and spaces at the context's end belong to the continuation: what is
scored are the tokens beyond those of the context alone, as lm-evaluation-harness has it. The tokenizer puts before the
context what it puts before every prompt. Where that is nothing and there is no context, nothing predicts the first
token: it is not scored, nor are its bytes counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from polyserve.errors import InvalidRequest
from polyserve.output import LogprobEntry
from polyserve.sampling_params import SamplingParams
from polyserve.tokenizer.base import Tokenizer

SCORING = SamplingParams(max_tokens=0, prompt_logprobs=1, seed=0)  # the likeliest token tells what is greedy


@dataclass(frozen=True, slots=True)
class Scorable:
    """A text as the engine scores it."""

    prompt_ids: list[int]
    num_before: int  # tokens that are not scored


@dataclass(frozen=True, slots=True)
class Score:
    token_ids: list[int]
    logprobs: list[float]  # natural logarithms, one for each token
    num_bytes: int
    is_greedy: bool  # whether each token is the likeliest one at its place

    @property
    def logprob(self) -> float:
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        return math.exp(-self.logprob / len(self.logprobs))

    @property
    def bits_per_byte(self) -> float | None:
        """None if the tokens stand for no bytes."""
        return -self.logprob / math.log(2) / self.num_bytes if self.num_bytes else None


def scorable(tokenizer: Tokenizer, context: str, continuation: str) -> Scorable:
    """The tokens of both. Raises InvalidRequest if none is left to be scored."""
    kept = context.rstrip()
    before = tokenizer.encode(kept)
    prompt_ids = tokenizer.encode(kept + context[len(kept) :] + continuation)
    num_before = max(1, len(before))
    if len(prompt_ids) <= num_before:
        raise InvalidRequest("the continuation has no token that something before it predicts", param="continuation")
    return Scorable(prompt_ids, num_before)


def score_of(text: Scorable, entries: Sequence[LogprobEntry | None]) -> Score:
    """entries: of the whole prompt."""
    scored = [entry for entry in entries[text.num_before :] if entry is not None]
    return Score(
        token_ids=[entry.token_id for entry in scored],
        logprobs=[entry.logprob for entry in scored],
        num_bytes=sum(len(entry.bytes) for entry in scored),
        is_greedy=all(entry.token_id == entry.top[0].token_id for entry in scored),
    )
