"""A conversation as both protocols read it, and as chat templates are shown it.

role        needs                                      the template sees
system      content                                    system
developer   content                                    system, its older name
user        content                                    user
assistant   content, tool_calls or both                assistant; each call's arguments as the value that they spell
tool        content and tool_call_id: a call's result  tool
function    content and name: the same, before 2023    tool
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import orjson

from polyserve.errors import InvalidRequest
from polyserve.tools.definition import Tool
from polyserve.tools.parser import CallDelta

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]

ROLES: tuple[Role, ...] = get_args(Role)
TEMPLATE_ROLES = {"developer": "system", "function": "tool"}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made. `arguments` is its own text: JSON, if the model wrote it well."""

    id: str
    name: str
    arguments: str

    def for_template(self) -> dict[str, object]:
        try:
            arguments = orjson.loads(self.arguments)
        except orjson.JSONDecodeError:
            arguments = self.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


def joined_calls(deltas: Sequence[CallDelta]) -> list[ToolCall]:
    """Whole calls, of all their deltas."""
    arguments: dict[int, str] = {}
    for delta in deltas:
        arguments[delta.index] = arguments.get(delta.index, "") + delta.arguments
    return [ToolCall(first.id or "", first.name, arguments[first.index]) for first in deltas if first.name is not None]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` None: none was given."""

    role: Role
    content: str | None = None
    name: str | None = None
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str | None = None

    def check(self, field: str) -> None:
        """Raise InvalidRequest if the role lacks what it needs, or has what is another's. `field` names the message."""
        needs = {
            "content": self.content is None and not self.tool_calls,
            "tool_call_id": self.role == "tool" and self.tool_call_id is None,
            "name": self.role == "function" and self.name is None,
        }
        for name, lacking in needs.items():
            if lacking:
                message = f"{field}.{name} is required in a message of role '{self.role}'"
                raise InvalidRequest(message, param=f"{field}.{name}")
        strays = {
            "tool_calls": (bool(self.tool_calls), "assistant"),
            "tool_call_id": (self.tool_call_id is not None, "tool"),
        }
        for name, (given, role) in strays.items():
            if given and self.role != role:
                message = f"{field}.{name} is for messages of role '{role}', not of role '{self.role}'"
                raise InvalidRequest(message, param=f"{field}.{name}")

    def for_template(self) -> dict[str, object]:
        """Without content an empty text: templates add it to others."""
        message: dict[str, object] = {
            "role": TEMPLATE_ROLES.get(self.role, self.role),
            "content": self.content or "",
        }
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """`add_generation_prompt` None: yes, but where the answer continues the final message."""

    messages: Sequence[Message]
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    tools: Sequence[Tool] = ()  # that the template is shown

    def check(self) -> None:
        """Raise InvalidRequest if a message is not what its role makes it, or the answer would begin in two places."""
        for position, message in enumerate(self.messages):
            message.check(f"messages[{position}]")
        if self.continue_final_message and self.add_generation_prompt:
            why = "continue_final_message cannot go with add_generation_prompt: the answer begins in one place"
            raise InvalidRequest(why, param="continue_final_message")

    @property
    def num_bytes(self) -> int:
        """Of all that was said and called."""
        texts = [message.content or "" for message in self.messages]
        texts += [tool.description or "" for tool in self.tools]
        texts += [call.arguments for message in self.messages for call in message.tool_calls]
        return sum(len(text.encode(errors="replace")) for text in texts)

    @property
    def adds_generation_prompt(self) -> bool:
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt
