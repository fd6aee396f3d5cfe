"""The bodies that clients send, field by field.

Types are strict: nothing is converted silently, a field that is not listed is refused by name, and null means the
default everywhere. Ranges are checked in SamplingParams, which gRPC and Python share. Fields fall into four kinds:
    honoured      they have an effect, under OpenAI's names or, for what OpenAI lacks, vLLM's
    metadata      `user` and the like, which OpenAI defines to have none
    unsupported   OpenAI's, but in need of something that is not here: refused, but for the values that ask for nothing
    unknown       everything else: refused
"""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from polyserve.api.frontend import Conversation, Message
from polyserve.api.http.fields import Content, Label, LogitBias, Only, Prompts, Stops, Unsupported
from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams

SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingParams))


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Annotated[JsonValue, Only((False,))] = None


class GenerationBody(Body):
    """What completions and chat completions have in common."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: LogitBias | None = None
    seed: int | None = None
    stop: Stops | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    # what OpenAI lacks
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    allowed_token_ids: list[int] | None = None
    stop_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    priority: int | None = None
    # metadata
    user: Label | None = None

    def options(self) -> dict[str, Any]:
        """Those fields of SamplingParams that the client gave."""
        given = ((name, getattr(self, name, None)) for name in SAMPLING_FIELDS)
        return {name: value for name, value in given if value is not None}

    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        if self.stream_options is None:
            return False
        if not self.stream:
            raise InvalidRequest("stream_options needs stream to be true", param="stream_options")
        return bool(self.stream_options.include_usage)


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Prompts
    logprobs: int | None = None
    best_of: Annotated[JsonValue, Only((1,))] = None
    suffix: Unsupported = None

    def options(self) -> dict[str, Any]:
        """With `echo`, log-probabilities are of the prompt as well."""
        options = super().options()
        if self.echo and self.logprobs is not None:
            options["prompt_logprobs"] = max(self.logprobs, self.prompt_logprobs or 0)
        return options


class MessageBody(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Label | None = None
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Annotated[JsonValue, Only(([],))] = None
    tool_call_id: Unsupported = None


class ConversationBody(Body):
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def conversation(self, messages: list[MessageBody]) -> Conversation:
        return Conversation(
            messages=[Message(message.role, message.content, message.name) for message in messages],
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=bool(self.continue_final_message),
        )


class ChatBody(GenerationBody, ConversationBody):
    """POST /v1/chat/completions."""

    messages: list[MessageBody]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    # metadata
    metadata: dict[str, Label] | None = None
    safety_identifier: Label | None = None
    # unsupported
    audio: Unsupported = None
    function_call: Annotated[
        JsonValue,
        Only(
            (
                "none",
                "auto",
            )
        ),
    ] = None
    functions: Annotated[JsonValue, Only(([],))] = None
    modalities: Annotated[JsonValue, Only((["text"],))] = None
    moderation: Unsupported = None
    parallel_tool_calls: Annotated[JsonValue, Only((True,))] = None
    prediction: Unsupported = None
    prompt_cache_key: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Unsupported = None
    reasoning_effort: Annotated[JsonValue, Only(("none",))] = None
    response_format: Annotated[JsonValue, Only(({"type": "text"},))] = None
    service_tier: Annotated[
        JsonValue,
        Only(
            (
                "auto",
                "default",
            )
        ),
    ] = None
    store: Annotated[JsonValue, Only((False,))] = None
    tool_choice: Annotated[
        JsonValue,
        Only(
            (
                "none",
                "auto",
            )
        ),
    ] = None
    tools: Annotated[JsonValue, Only(([],))] = None
    verbosity: Annotated[JsonValue, Only(("medium",))] = None
    web_search_options: Unsupported = None

    def options(self) -> dict[str, Any]:
        """`logprobs` asks for them, `top_logprobs` says how many; `max_tokens`' newer name goes before the older."""
        options = super().options()
        if options.pop("logprobs", False):
            options["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs is not None:
            raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        if self.max_completion_tokens is not None:
            options["max_tokens"] = self.max_completion_tokens
        return options

    def renamed(self) -> dict[str, str]:
        """What the client calls some fields of SamplingParams."""
        names = {"logprobs": "top_logprobs"}
        if self.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
        return names


class TokenizeBody(ConversationBody):
    """POST /tokenize: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    add_special_tokens: bool | None = None  # default: true for a text, false for a conversation
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]
    skip_special_tokens: bool | None = None
