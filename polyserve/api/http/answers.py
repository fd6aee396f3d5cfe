"""What clients are sent, field by field: OpenAI's objects, and beside them what a comment below a field explains.

These describe the answers in `/openapi.json` and `docs/api.md`, and tests hold answers to them. Endpoints build plain
dictionaries, which cost several times less, for every token.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from polyserve.api.conversation import Role

FinishReason = Literal["stop", "length", "tool_calls"]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class CachedTokens(Answer):
    cached_tokens: int


class UsageObject(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TopLogprobObject(Answer):
    token: str
    logprob: float
    bytes: list[int] | None
    """Null for a token that is not in the text."""


class LogprobObject(TopLogprobObject):
    top_logprobs: list[TopLogprobObject]


class ChatLogprobs(Answer):
    content: list[LogprobObject]
    refusal: None


class RankedLogprob(Answer):
    logprob: float
    rank: int | None
    """Null for the prompt's own token where it is none of the likeliest."""
    decoded_token: str


PromptLogprobs = list[dict[str, RankedLogprob] | None]


class LegacyLogprobsObject(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CalledFunction(Answer):
    name: str
    arguments: str
    """JSON that follows the function's schema, but where the answer was cut."""


class CallObject(Answer):
    id: str
    type: Literal["function"]
    function: CalledFunction


class MessageObject(Answer):
    role: Literal["assistant"]
    content: str | None
    """Null where there are calls and no text."""
    refusal: None
    tool_calls: list[CallObject] | None = None


class ChoiceObject(Answer):
    """What choices of both kinds have."""

    index: int
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    """The stop string or stop token of the request that ended the choice."""
    token_ids: list[int] | None = None
    """With `return_token_ids`."""


class ChatChoice(ChoiceObject):
    message: MessageObject
    logprobs: ChatLogprobs | None


class Envelope(Answer):
    """What whole answers and chunks have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    """The numerics id: with the same one and the same seed, the same request has the same answer."""


class ChatEnvelope(Envelope):
    service_tier: Literal["default"] | None = None
    prompt_token_ids: list[int] | None = None
    """With `return_token_ids`."""
    prompt_logprobs: PromptLogprobs | None = None
    """With `prompt_logprobs`: by token id, at each place of the prompt."""


class ChatCompletion(ChatEnvelope):
    """The answer to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: UsageObject
    metadata: dict[str, str] | None = None


class CalledFunctionDelta(Answer):
    name: str | None = None
    arguments: str


class CallDeltaObject(Answer):
    """What is new of a call. The first one has all of it but most of the arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionDelta


class Delta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    tool_calls: list[CallDeltaObject] | None = None


class ChatChunkChoice(ChoiceObject):
    delta: Delta
    logprobs: ChatLogprobs | None


class ChatCompletionChunk(ChatEnvelope):
    """One event of a streamed answer to a conversation."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: UsageObject | None = None


class CompletionChoice(ChoiceObject):
    text: str
    logprobs: LegacyLogprobsObject | None
    prompt_token_ids: list[int] | None = None
    """With `return_token_ids`."""
    prompt_logprobs: PromptLogprobs | None = None
    """With `prompt_logprobs`: by token id, at each place of the prompt."""


class Completion(Envelope):
    """The continuation of prompts, or one event of a streamed one."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: UsageObject | None = None


class EmbeddingObject(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Of unit length; base64 where that was asked for."""


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answer):
    """One vector for each input, in order."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage


class ScoreObject(Answer):
    object: Literal["score"]
    index: int
    logprob: float
    """Natural logarithm of the continuation's probability: the sum over its tokens."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest one at its place."""
    perplexity: float
    bits_per_byte: float | None
    num_bytes: int
    token_ids: list[int]
    token_logprobs: list[float]


class ScoreList(Answer):
    """One score for each input, in order."""

    object: Literal["list"]
    data: list[ScoreObject]
    model: str
    system_fingerprint: str
    usage: EmbeddingUsage


class ListAnswer(Answer):
    """A page of a list."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    """Give it as `after` to go on."""
    has_more: bool


class ChatCompletionList(ListAnswer):
    """A page of stored completions."""

    data: list[ChatCompletion]


class DeletedCompletion(Answer):
    """What was forgotten."""

    object: Literal["chat.completion.deleted"]
    id: str
    deleted: Literal[True]


class StoredMessage(Answer):
    id: str
    role: Role
    content: str | None
    refusal: None
    name: str | None = None
    tool_calls: list[CallObject] | None = None
    tool_call_id: str | None = None


class StoredMessageList(ListAnswer):
    """A page of the messages that a stored completion answers."""

    data: list[StoredMessage]


class Model(Answer):
    """The served model under one of its names."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    """Most tokens of a prompt and its answer."""


class ModelList(Answer):
    object: Literal["list"]
    data: list[Model]


class TokenizeAnswer(Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None
    """With `return_token_strs`."""


class DetokenizeAnswer(Answer):
    prompt: str


class Health(Answer):
    status: Literal["ok"]


def answers(model: type[Answer], *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route whose answer is a `model`, or events that are described in words."""
    described: dict[str, Any] = {"model": model, "description": model.__doc__ or model.__name__}
    if streams:
        described["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: described}
