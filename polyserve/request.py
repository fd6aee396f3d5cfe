"""What crosses the engine's door, in both directions: plain frozen values of integers, here and over the socket.

Request          what a client asked, as token ids; it is served by `params.n` sequences, its choices 0 to n - 1
SequenceOutput   what one step brought for one of them
Vocabulary       what the tokens look like; grammars need it
A request that has `pooling` asks for no tokens but for one vector: see `polyserve.pooling`.
Token ids only: text belongs to `polyserve.output`. Every Request is made by `admit`, in the front of a server and in
`LLM` alike, so that a missing seed is drawn once and stays with the request wherever it is sent.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from polyserve.errors import InternalError, InvalidRequest, PolyServeError
from polyserve.pooling import Pooling
from polyserve.sampling_params import SamplingParams

SEED_BITS = 63  # a drawn seed is one that a client could have given, so that an answer can be asked for again

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    request_id: str  # unique among live requests
    prompt_ids: list[int]
    params: SamplingParams  # the seed is set
    pooling: Pooling | None = None  # then params.max_tokens is 0
    answered: dict[int, list[int]] | None = None  # of one that goes on: what each choice that has not ended has by now


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One position: the token that stands there, its log-probability, and the most likely tokens with theirs.

    `top_ids` holds as many as were asked for, best first; the token itself is in it only if it is one of them, and then
    its value in `top_logprobs` is the same number.
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
    prompt_logprobs: list[TokenLogprob | None] | None = (
        None  # whole prompt, with choice 0's first output; entry 0 is None
    )
    num_cached_tokens: int = 0  # prompt tokens whose keys and values came from the prefix cache
    error: str | None = None  # with finish_reason "error": what to tell the client
    cumulative_logprob: float | None = None  # with the end of an answer of beam search: sum over all its tokens
    refused_param: str | None = None  # the parameter at fault, if the error is the request's own
    pooled: list[float] | None = None  # the pooled hidden states [C], if asked for


POOLED = SamplingParams(max_tokens=0, seed=0)  # of requests that ask for a vector: there is nothing to choose


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The bytes of every token, by id; empty for an id that is no token."""

    token_bytes: list[bytes]
    special_ids: frozenset[int]  # whose bytes are no text


def refusals(request: Request, error: InvalidRequest) -> list[SequenceOutput]:
    """The ends of all choices of a request that turns out to be at fault after it was taken in."""
    return [
        SequenceOutput(
            request.request_id,
            choice,
            [],
            finish_reason="error",
            error=error.message,
            refused_param=error.param or "params",
        )
        for choice in range(request.params.n)
    ]


def error_of(output: SequenceOutput) -> PolyServeError:
    """What an output with finish_reason "error" means for the client."""
    if output.refused_param is not None:
        return InvalidRequest(output.error or "the request cannot be served", param=output.refused_param)
    return InternalError(output.error or "the engine gave this request up")


def draw_seed() -> int:
    """A seed for a request that brought none: 0 to 2**63 - 1, from the operating system's randomness."""
    return secrets.randbits(SEED_BITS)


def admit(request_id: str, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
    """The Request for a prompt that has been checked, with its seed."""
    if params.seed is None:
        params = replace(params, seed=draw_seed())
    return Request(request_id, list(prompt_ids), params)


def pooling_request(request_id: str, prompt_ids: Sequence[int], pooling: Pooling) -> Request:
    """The Request for one vector."""
    return Request(request_id, list(prompt_ids), POOLED, pooling)


def check_request(
    prompt_ids: Sequence[int], params: SamplingParams, *, vocab_size: int, max_model_len: int, max_logprobs: int
) -> None:
    """Raise InvalidRequest if a model of this vocabulary and this length can never serve the request."""
    if not prompt_ids:
        raise InvalidRequest("the prompt must have at least one token, got none", param="prompt")
    params.check_against(vocab_size=vocab_size, max_logprobs=max_logprobs)
    num_answer = 0 if params.max_tokens == 0 else max(1, params.min_tokens)
    too_many = len(prompt_ids) + num_answer - max_model_len
    if too_many > 0:
        answer = f" and needs {num_answer} more for its answer" if num_answer else ""
        raise InvalidRequest(
            f"the prompt has {len(prompt_ids)} tokens{answer}; this model takes {max_model_len}: {too_many} too many",
            param="prompt",
            code="context_length_exceeded",
        )
    # Last: it takes a moment where the prompt is long, and by now it is not too long.
    if min(prompt_ids) < 0 or max(prompt_ids) >= vocab_size:
        wrong = next(token_id for token_id in prompt_ids if not 0 <= token_id < vocab_size)
        raise InvalidRequest(
            f"the prompt holds token id {wrong}; this model's ids are 0 to {vocab_size - 1}", param="prompt"
        )
