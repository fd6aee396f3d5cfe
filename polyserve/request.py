"""What crosses the engine's door, in both directions: plain frozen values of integers, the same in this process and over the socket.

Request          what a client asked, as token ids; it is served by `params.n` sequences, its choices 0 to n - 1
SequenceOutput   what one step brought for one of them
Token ids only: text belongs to `polyserve.output`.
"""

from dataclasses import dataclass, field
from typing import Literal

from polyserve.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    request_id: str  # unique among live requests
    prompt_ids: list[int]
    params: SamplingParams  # the seed is set: `admit` draws a missing one


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One position: the token that stands there, its log-probability, and the most likely tokens with theirs, best first.

    `top_ids` holds as many as were asked for; the token itself is in it only if it is one of them. Equal floats are equal bits:
    the token's own value and its value in `top_logprobs` are the same number.
    """

    token_id: int
    logprob: float  # natural logarithm, of the model's own distribution
    top_ids: list[int] = field(default_factory=list)
    top_logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What is new for one choice. `finish_reason` is None while it goes on."""

    request_id: str
    choice: int
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None  # one for each of token_ids, if asked for
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None  # the stop token's id, if one other than the model's end of sequence ended it
    prompt_logprobs: list[TokenLogprob | None] | None = None  # whole prompt at once, with the first output of choice 0; entry 0 is None
    num_cached_tokens: int = 0  # prompt tokens whose keys and values came from the prefix cache
    error: str | None = None  # with finish_reason "error": what to tell the client
