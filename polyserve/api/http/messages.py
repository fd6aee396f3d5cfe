"""A conversation as a body carries it."""

from typing import Literal

from polyserve.api.conversation import Conversation, Message, Role, ToolCall
from polyserve.api.http.fields import Body, Content, Label, Unsupported


class FunctionCallBody(Body):
    """What was called."""

    name: str
    arguments: str
    """The assistant's own text: JSON, if the model wrote it well."""


class ToolCallBody(Body):
    """One call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCallBody


class MessageBody(Body):
    """One turn of a conversation."""

    role: Role
    content: Content = None
    """A text, or text parts, which stand on lines of their own. Required, but beside the assistant's calls."""
    name: Label | None = None
    """Who speaks, for the template to show; of role `function`: which function's result this is, and required."""
    refusal: str | None = None
    """What the assistant said instead of an answer: its content, where it has none."""
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: Label | None = None
    """Of role `tool`, and required there: the call whose result this is."""
    function_call: FunctionCallBody | None = None
    """The older way of a tool call, of which there is one."""
    audio: Unsupported = None

    def message(self) -> Message:
        calls = [ToolCall(call.id, call.function.name, call.function.arguments) for call in self.tool_calls or ()]
        if self.function_call is not None:
            calls.append(ToolCall("", self.function_call.name, self.function_call.arguments))
        content = self.refusal if self.content is None else self.content
        return Message(self.role, content, self.name, calls, self.tool_call_id)


class ConversationBody(Body):
    add_generation_prompt: bool | None = None
    """Open the assistant's turn at the end; default: yes, but with `continue_final_message`."""
    continue_final_message: bool | None = None
    """The answer goes on where the last message ends."""

    def conversation(self, messages: list[MessageBody]) -> Conversation:
        return Conversation(
            messages=[message.message() for message in messages],
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=bool(self.continue_final_message),
        )
