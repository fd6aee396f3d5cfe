"""Protocol buffers to the values that both protocols share, and back.

Fields of SamplingParams have the same names on both sides, so they are copied, not listed; what a client did not set is
left out.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import orjson
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.unknown_fields import UnknownFieldSet

from polyserve.api.conversation import ROLES, Conversation, Message, ToolCall
from polyserve.api.frontend import Admitted, Usage
from polyserve.api.store import StoredCompletion
from polyserve.errors import InvalidRequest
from polyserve.output import LogprobEntry, TopLogprob
from polyserve.pooling import Pooling
from polyserve.scoring import Score
from polyserve.service.async_llm import ChoiceDelta
from polyserve.tokenizer.base import Tokenizer
from polyserve.tools.definition import Tool, ToolUse
from polyserve_proto.v1 import polyserve_pb2 as pb

ROLE_OF = {pb.ChatMessage.Role.Value(f"ROLE_{role.upper()}"): role for role in ROLES}
EARLY_STOPPING: dict[int, bool | str] = {
    pb.EARLY_STOPPING_FALSE: False,
    pb.EARLY_STOPPING_TRUE: True,
    pb.EARLY_STOPPING_NEVER: "never",
}
POOLINGS: dict[int, Pooling | None] = {
    pb.POOLING_UNSPECIFIED: None,
    pb.POOLING_MEAN: "mean",
    pb.POOLING_LAST: "last",
}
FINISH_REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
}


class HasConversation(Protocol):
    """ChatRequest and Conversation: both say what is to be answered, in the same fields."""

    @property
    def messages(self) -> Sequence[pb.ChatMessage]: ...
    @property
    def add_generation_prompt(self) -> bool: ...
    @property
    def continue_final_message(self) -> bool: ...
    def HasField(self, field_name: Literal["add_generation_prompt"]) -> bool: ...


def refuse_unknown(message: ProtoMessage) -> None:
    """Raise InvalidRequest if the message, or one inside it, has a field that this server does not know."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        number = unknown[0].field_number
        raise InvalidRequest(f"{message.DESCRIPTOR.name} has the unknown field number {number}", code="unknown_field")
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for inner in value if field.is_repeated else [value]:
            refuse_unknown(inner)


def sampling_options(params: pb.SamplingParams) -> dict[str, Any]:
    """Those fields of SamplingParams that the client set."""
    options = {field.name: _plain(value) for field, value in params.ListFields()}
    if params.early_stopping:
        options["early_stopping"] = EARLY_STOPPING.get(params.early_stopping, params.early_stopping)
    return options


def _plain(value: Any) -> Any:
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, pb.Choices):
        return list(value.choices)
    return dict(value) if hasattr(value, "items") else list(value)


def conversation(request: HasConversation) -> Conversation:
    """What is to be answered. Raises InvalidRequest for a message without a role."""
    adds = request.add_generation_prompt if request.HasField("add_generation_prompt") else None
    return Conversation(
        messages=[_message(position, message) for position, message in enumerate(request.messages)],
        add_generation_prompt=adds,
        continue_final_message=request.continue_final_message,
    )


def _message(position: int, message: pb.ChatMessage) -> Message:
    role = ROLE_OF.get(message.role)
    if role is None:
        field = f"messages[{position}].role"
        wanted = " or ".join(map(repr, ROLES))
        raise InvalidRequest(f"{field} must be {wanted}, got {message.role}", param=field)
    return Message(
        role,
        message.content if message.HasField("content") else None,
        message.name if message.HasField("name") else None,
        [ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls],
        message.tool_call_id if message.HasField("tool_call_id") else None,
    )


def tool_use(request: pb.ChatRequest) -> ToolUse | None:
    """What the model may call; None if nothing. Raises InvalidRequest."""
    choice = request.tool_choice
    mode, named = choice.mode, choice.function if choice.HasField("function") else None
    forced = named is not None or mode == pb.ToolChoice.MODE_REQUIRED
    if forced and not request.tools:
        raise InvalidRequest("tool_choice needs tools to choose from", param="tool_choice")
    if not request.tools or mode == pb.ToolChoice.MODE_NONE:
        return None
    return ToolUse(
        tools=[_tool(position, tool) for position, tool in enumerate(request.tools)],
        required=mode == pb.ToolChoice.MODE_REQUIRED,
        named=named,
        parallel=request.parallel_tool_calls if request.HasField("parallel_tool_calls") else True,
    )


def _tool(position: int, tool: pb.Tool) -> Tool:
    description = tool.description if tool.HasField("description") else None
    try:
        parameters = orjson.loads(tool.parameters or "{}")
    except orjson.JSONDecodeError:
        parameters = None
    if not isinstance(parameters, dict):
        field = f"tools[{position}].parameters"
        raise InvalidRequest(f"{field} must be a JSON schema of an object", param=field)
    return Tool(tool.name, description, parameters or None, tool.strict)


def embed_inputs(request: pb.EmbedRequest) -> list[str | list[int]]:
    """The texts or token ids. Raises InvalidRequest for one that is neither."""
    inputs: list[str | list[int]] = []
    for position, one in enumerate(request.inputs):
        kind = one.WhichOneof("input")
        if kind is None:
            field = f"inputs[{position}]"
            raise InvalidRequest(f"{field} must have one of text and token_ids", param=field)
        inputs.append(one.text if kind == "text" else list(one.token_ids.ids))
    return inputs


def pooling(request: pb.EmbedRequest) -> Pooling | None:
    """How hidden states become a vector. Raises InvalidRequest for a number that says nothing."""
    if request.pooling not in POOLINGS:
        raise InvalidRequest(f"pooling must be 'mean' or 'last', got {request.pooling}", param="pooling")
    return POOLINGS[request.pooling]


def text_score(score: Score) -> pb.TextScore:
    """The score of one text."""
    return pb.TextScore(
        logprob=score.logprob,
        is_greedy=score.is_greedy,
        perplexity=score.perplexity,
        bits_per_byte=score.bits_per_byte,
        num_bytes=score.num_bytes,
        token_ids=score.token_ids,
        token_logprobs=score.logprobs,
    )


def prompt_event(request: Admitted, first: ChoiceDelta, tokenizer: Tokenizer) -> pb.Prompt:
    """What the request's prompt became."""
    token_ids = request.prompts[0].token_ids
    prompt = pb.Prompt(token_ids=token_ids)
    if first.prompt_logprobs is not None:
        for token_id, entry in zip(token_ids, first.prompt_logprobs, strict=True):
            prompt.logprobs.append(_first_logprob(tokenizer, token_id) if entry is None else _logprob(entry))
    return prompt


def choice_delta(delta: ChoiceDelta) -> pb.ChoiceDelta:
    """What is new in a choice."""
    message = pb.ChoiceDelta(choice=delta.choice, text=delta.text, token_ids=delta.token_ids)
    for call in delta.calls:
        message.tool_calls.add(index=call.index, id=call.id, name=call.name, arguments=call.arguments)
    if delta.logprobs is not None:
        message.logprobs.extend(map(_logprob, delta.logprobs))
    if delta.finish_reason is not None:
        message.finish_reason = FINISH_REASONS[delta.finish_reason]
    if isinstance(delta.stop_reason, str):
        message.stop_string = delta.stop_reason
    elif delta.stop_reason is not None:
        message.stop_token_id = delta.stop_reason
    return message


def usage_event(usage: Usage | StoredCompletion) -> pb.Usage:
    """How many tokens it was."""
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _logprob(entry: LogprobEntry) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=entry.token_id,
        token=entry.token,
        bytes=entry.bytes,
        logprob=entry.logprob,
        top=map(_top, entry.top),
    )


def _first_logprob(tokenizer: Tokenizer, token_id: int) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=token_id, token=tokenizer.token_text(token_id), bytes=tokenizer.token_bytes(token_id)
    )


def _top(entry: TopLogprob) -> pb.TopLogprob:
    return pb.TopLogprob(token_id=entry.token_id, token=entry.token, bytes=entry.bytes, logprob=entry.logprob)
