"""A Step is what the scheduler decided; a StepResult is what the runner answered. Both are frozen plain values.

A Step carries only what changed, so that it prints, saves, replays in a test, and can be broadcast to ranks; the
runner keeps what it was told before. It may name a token that is not known yet: the token at a chunk's `start` can be
the one the previous step sampled.
"""

from dataclasses import dataclass, field

from polyserve.pooling import Pooling
from polyserve.request import TokenLogprob
from polyserve.sampling_params import SamplingParams

NONE_ALLOWED = "the request's parameters leave no token that could come next"


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A sequence that the runner does not know, or forgot when it was preempted: all there is to know about it."""

    seq_id: int
    tokens: list[int]  # prompt, then what was sampled before a preemption
    prompt_len: int
    choice: int
    params: SamplingParams
    pooling: Pooling | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute tokens [start, start + num_tokens) of one sequence, after `block_table[first_block:] = blocks`."""

    seq_id: int
    start: int
    num_tokens: int
    first_block: int
    blocks: list[int]
    samples: bool  # the chunk ends at the last known token: draw the next one


@dataclass(frozen=True, slots=True)
class Step:
    """`released` are forgotten, `admitted` and `appended` are learned, blocks are copied, chunks are computed."""

    chunks: list[Chunk]
    admitted: list[NewSequence] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)  # (source block, destination block)
    appended: dict[int, int] = field(default_factory=dict)  # seq_id -> the token that was chosen for it, a beam

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Sampled:
    seq_id: int
    token_id: int
    logprob: TokenLogprob | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the best tokens to go on with. Log-probabilities are natural logarithms."""

    token_id: int
    score: float  # after edits, by the model's own log-sum-exp
    raw_logprob: float
    logprob: TokenLogprob | None  # if asked for


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a beam can go on with, best first. None at all if nothing is allowed."""

    seq_id: int
    candidates: list[Candidate]


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of the prompt tokens [start, start + len(entries)) of one sequence."""

    seq_id: int
    start: int
    entries: list[TokenLogprob]


@dataclass(frozen=True, slots=True)
class Pooled:
    """The vector of one sequence whose prompt ends in this step."""

    seq_id: int
    values: list[float]


@dataclass(frozen=True, slots=True)
class Failed:
    """One sequence of the step cannot go on, through no fault of the others."""

    seq_id: int
    message: str  # for the client
    refused_param: str | None = None  # the parameter at fault, if it is the request's own


@dataclass(frozen=True, slots=True)
class StepResult:
    sampled: list[Sampled]
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    pooled: list[Pooled] = field(default_factory=list)
    candidates: list[Candidates] = field(default_factory=list)
