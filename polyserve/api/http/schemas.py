"""The bodies that clients send to generate, field by field. `docs/api.md` and `/openapi.json` are made from them.

Types are strict: nothing is converted silently, a field that is not listed is refused by name, and null means the
default everywhere. Ranges are checked in SamplingParams, which gRPC and Python share. Fields fall into four kinds:
    honoured      they have an effect, under OpenAI's names or, for what OpenAI lacks, vLLM's
    metadata      `user` and the like, which OpenAI defines to have none; echoed where OpenAI's response has a place
    unsupported   OpenAI's, but in need of something that is not here: refused, but for the values that ask for nothing
    unknown       everything else: refused
A field of SamplingParams has its description there.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import JsonValue

from polyserve.api.http.fields import (
    ACCEPTED,
    ECHOED,
    SAMPLING,
    Body,
    EarlyStopping,
    Label,
    LogitBias,
    Only,
    Prompts,
    Stops,
    Unsupported,
)
from polyserve.api.http.messages import ConversationBody, MessageBody
from polyserve.api.http.structured import ResponseFormat, Schema, add_grammar
from polyserve.api.http.tools import ToolBody, ToolChoice, tool_use
from polyserve.errors import InvalidRequest
from polyserve.tools.definition import ToolUse


class StreamOptions(Body):
    """What a stream tells besides its choices."""

    include_usage: bool | None = None
    """End with a chunk of no choices that carries the usage."""
    continuous_usage_stats: bool | None = None
    """Let every chunk carry the usage so far, of all choices together."""
    include_obfuscation: Annotated[JsonValue, Only((False,))] = None


@dataclass(frozen=True, slots=True)
class UsageChunks:
    """Where a stream tells its usage."""

    last: bool  # in a chunk of its own
    each: bool  # in every chunk


class GenerationBody(Body):
    """What completions and chat completions have in common."""

    model: str | None = None
    """One of the served names, of which the first is the default and the one that responses carry."""
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
    """Send the answer as server-sent events while it is made."""
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    """Begin the answer with the prompt; of a chat, with the last message, if that is the assistant's."""
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
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: EarlyStopping | None = None
    cache_salt: str | None = None
    priority: int | None = None
    return_token_ids: bool | None = None
    """Give the ids of the prompt (`prompt_token_ids`) and of the answer (`token_ids`) as well."""
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    response_format: ResponseFormat | None = None
    """The answer is any text, a JSON object, or a value that a JSON schema allows."""
    # metadata
    user: Annotated[Label | None, ACCEPTED] = None

    def options(self) -> dict[str, Any]:
        """Those fields of SamplingParams that the client gave."""
        given = ((name, getattr(self, name, None)) for name in SAMPLING)
        options = {name: value for name, value in given if value is not None}
        add_grammar(options, self.response_format)
        return options

    def renamed(self) -> dict[str, str]:
        """What the client calls some fields of SamplingParams."""
        return {} if self.response_format is None else {"guided_json": "response_format"}

    def usage_chunks(self) -> UsageChunks:
        """Where a stream tells its usage."""
        if self.stream_options is None:
            return UsageChunks(last=False, each=False)
        if not self.stream:
            raise InvalidRequest("stream_options needs stream to be true", param="stream_options")
        asked = self.stream_options
        return UsageChunks(last=bool(asked.include_usage), each=bool(asked.continuous_usage_stats))


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Prompts
    """A text, its token ids, or a list of either: each is answered with `n` choices."""
    logprobs: int | None = None
    suffix: Unsupported = None

    def options(self) -> dict[str, Any]:
        """With `echo`, log-probabilities are of the prompt as well."""
        options = super().options()
        if self.echo and self.logprobs is not None:
            options["prompt_logprobs"] = max(self.logprobs, self.prompt_logprobs or 0)
        return options


class ChatBody(GenerationBody, ConversationBody):
    """POST /v1/chat/completions."""

    messages: list[MessageBody]
    """The conversation, which the model's chat template writes out."""
    max_tokens: int | None = None
    """Most tokens of an answer; default: as many as the model's length allows."""
    max_completion_tokens: int | None = None
    """The newer name of `max_tokens`, and goes before it."""
    logprobs: bool | None = None
    """Give the log-probability of each token."""
    top_logprobs: int | None = None
    """As well as this many of the likeliest tokens at each place; needs `logprobs`."""
    tools: list[ToolBody] | None = None
    """Functions that the model may call; their arguments follow the schemas."""
    tool_choice: ToolChoice | None = None
    """`auto`: call functions or not, `none`, `required`: call one or more, or the one function that is to be called."""
    parallel_tool_calls: bool | None = None
    """Let one answer call several functions; default: yes."""
    store: bool | None = None
    """Keep the conversation and its answer, to be retrieved by id; needs a server with `--store`."""
    # metadata
    metadata: Annotated[dict[str, str] | None, ECHOED] = None
    service_tier: Annotated[
        Literal["auto", "default", "flex", "scale", "priority", "fast"] | None,
        ECHOED,
    ] = None
    """There is one tier, `default`, and the response says so."""
    safety_identifier: Annotated[Label | None, ACCEPTED] = None
    prompt_cache_key: Annotated[Label | None, ACCEPTED] = None
    """Which cache to use: there is one. `cache_salt` keeps others out of it."""
    # unsupported
    audio: Unsupported = None
    function_call: Annotated[JsonValue, Only(("none", "auto"))] = None
    functions: Annotated[JsonValue, Only(([],))] = None
    modalities: Annotated[JsonValue, Only((["text"],))] = None
    moderation: Unsupported = None
    prediction: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Annotated[JsonValue, Only(("in_memory",))] = None
    reasoning_effort: Annotated[JsonValue, Only(("none",))] = None
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
        names = {"logprobs": "top_logprobs", **super().renamed()}
        if self.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
        return names

    def tool_use(self) -> ToolUse | None:
        """What the model may call. Raises InvalidRequest."""
        return tool_use(self.tools, self.tool_choice, parallel=self.parallel_tool_calls is not False)

    def echoed(self) -> dict[str, object]:
        """What every object of the answer repeats."""
        return {} if self.service_tier is None else {"service_tier": "default"}


class TokenizeBody(ConversationBody):
    """POST /tokenize: a text, or a conversation."""

    model: str | None = None
    """One of the served names."""
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    """Instead of `prompt`: a conversation, which the chat template writes out."""
    add_special_tokens: bool | None = None
    """Put in front what the model wants there; default: yes for a text, no for a conversation."""
    return_token_strs: bool | None = None
    """Give each token's text as well."""


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    """One of the served names."""
    tokens: list[int]
    skip_special_tokens: bool | None = None
    """Leave special tokens out of the text; default: no."""
