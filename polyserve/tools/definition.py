"""The functions that a model may call, and whether it has to: OpenAI's `tools`, `tool_choice`, `parallel_tool_calls`.

auto        text, calls, or text and calls, as the model likes
required    one call or more, and nothing else          named    one call of that function, and nothing else
Arguments follow the function's schema. What cannot be followed of it is an error where the function is `strict`, and is
left out otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyserve.errors import InvalidRequest

MAX_TOOLS = 128
MAX_NAME_CHARACTERS = 64
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@dataclass(frozen=True, slots=True)
class Tool:
    """One function. `parameters` is a JSON schema of an object."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    def for_template(self) -> dict[str, object]:
        function: dict[str, object] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What one request may call."""

    tools: Sequence[Tool]
    required: bool = False
    named: str | None = None  # the one function that is called
    parallel: bool = True

    def __post_init__(self) -> None:
        if len(self.tools) > MAX_TOOLS:
            raise InvalidRequest(f"tools takes at most {MAX_TOOLS} functions, got {len(self.tools)}", param="tools")
        names = [tool.name for tool in self.tools]
        for position, name in enumerate(names):
            field = f"tools[{position}].function.name"
            if not 0 < len(name) <= MAX_NAME_CHARACTERS or not NAME_CHARACTERS.issuperset(name):
                wanted = f"1 to {MAX_NAME_CHARACTERS} of the characters a to z, A to Z, 0 to 9, _ and -"
                raise InvalidRequest(f"{field} must be {wanted}", param=field)
            if name in names[:position]:
                raise InvalidRequest(f"{field} is the name of another function as well: {name!r}", param=field)
        if self.named is not None and self.named not in names:
            message = f"tool_choice names the function {self.named!r:.80}, which is not one of tools"
            raise InvalidRequest(message, param="tool_choice")

    @property
    def callable(self) -> list[Tool]:
        """Those that can be called."""
        return [tool for tool in self.tools if self.named in (None, tool.name)]

    @property
    def calls_only(self) -> bool:
        return self.required or self.named is not None

    @property
    def only_one(self) -> bool:
        return self.named is not None or not self.parallel
