"""`tools` and `tool_choice` as a body carries them, and calls as an answer does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import JsonValue, PlainValidator, WithJsonSchema

from polyserve.api.conversation import ToolCall
from polyserve.api.http.fields import Body, invalid
from polyserve.api.http.sentences import described
from polyserve.errors import InvalidRequest
from polyserve.tools.definition import Tool, ToolUse
from polyserve.tools.parser import CallDelta


class FunctionBody(Body):
    """What can be called."""

    name: str
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    """A JSON schema, which the arguments follow; default: no arguments."""
    strict: bool | None = None
    """Refuse a schema that cannot be followed in all it says; default: what cannot be followed is left out."""


class ToolBody(Body):
    """A function that the model may call."""

    type: Literal["function"]
    function: FunctionBody

    def tool(self) -> Tool:
        function = self.function
        return Tool(function.name, function.description, function.parameters, bool(function.strict))


@dataclass(frozen=True, slots=True)
class Named:
    """A choice of one function."""

    name: str


def _choice(value: object) -> str | Named:
    """One of three words, or a function's name."""
    if value in ("none", "auto", "required"):
        return str(value)
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or len(function) > 1:
        wanted = "must be 'none', 'auto', 'required' or a function's name as an object"
        raise invalid(f"{wanted}, got {described(value)}")
    return Named(function["name"])


_NAMED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["type", "function"],
}
ToolChoice = Annotated[
    str | Named,
    PlainValidator(_choice),
    WithJsonSchema({"anyOf": [{"enum": ["none", "auto", "required"]}, _NAMED_SCHEMA]}),
]


def tool_use(tools: list[ToolBody] | None, choice: str | Named | None, *, parallel: bool) -> ToolUse | None:
    """What the model may call; None if nothing. Raises InvalidRequest."""
    if not tools and choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice needs tools to choose from", param="tool_choice")
    if not tools or choice == "none":
        return None
    return ToolUse(
        tools=[tool.tool() for tool in tools],
        required=choice == "required",
        named=choice.name if isinstance(choice, Named) else None,
        parallel=parallel,
    )


def call_delta(call: CallDelta) -> dict[str, object]:
    """What is new of a call, in a chunk."""
    function: dict[str, object] = {"arguments": call.arguments}
    if call.name is None:
        return {"index": call.index, "function": function}
    return {"index": call.index, "id": call.id, "type": "function", "function": {"name": call.name, **function}}


def call_objects(calls: Sequence[ToolCall]) -> list[dict[str, object]]:
    """`tool_calls` of a message."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
