"""Conversations to prompts: a jinja template from a checkpoint, rendered in a sandbox.

Messages   [{"role": "user", "content": "..."}, ...], plain values only
Template   sees what Hugging Face's `apply_chat_template` shows it: `messages`, `add_generation_prompt`, `bos_token`,
           `eos_token`, `tools` (None: there are none), `documents` (None), `raise_exception`, `strftime_now`,
           `tojson`, `{% generation %}` blocks, loop controls
Templates are code from whoever made the checkpoint. The sandbox keeps them from reaching Python; only this module
renders one, and no request can bring its own. They are compiled once, when the tokenizer is loaded. How much time and
memory a template takes, nothing here can bound: for a server, `rendering.py` does.
"""

import json
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from polyserve.errors import InvalidRequest, ModelLoadError

# Stands where a final message ends, to find that place again in the rendered prompt. Its second half is not a character
# of Unicode: no text or template holds it. A space that is put after it shows whether the template trims messages.
_END_MARK = "\U0010fffd\U0010fffe"


class ChatTemplate:
    """One compiled template. Raises ModelLoadError if the source is no template."""

    def __init__(self, source: str, *, bos_token: str | None, eos_token: str | None) -> None:
        self.source, self.bos_token, self.eos_token = source, bos_token, eos_token
        named = {"bos_token": bos_token, "eos_token": eos_token}
        # One that the model lacks stays undefined, which renders as nothing; None would render as "None".
        tokens = {name: token for name, token in named.items() if token is not None}
        try:
            self._template = _environment().from_string(source, globals=tokens)
        except TemplateSyntaxError as error:
            raise ModelLoadError(f"the chat template cannot be read: line {error.lineno}: {error.message}") from error
        except (RecursionError, SyntaxError, MemoryError) as error:  # of Python's own compiler
            raise ModelLoadError(f"the chat template cannot be compiled: {type(error).__name__}") from error

    def render(
        self,
        messages: list[dict[str, object]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, object]] | None = None,
    ) -> str:
        """The prompt of a conversation. `add_generation_prompt` opens the assistant's turn; `continue_final_message`
        leaves the last message open instead, to be gone on with. Messages that the template refuses: InvalidRequest."""
        if not continue_final_message:
            return self._render(messages, add_generation_prompt, tools)
        if add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message goes on with the last message, so add_generation_prompt must be false",
                param="add_generation_prompt",
            )
        return self._render_open(messages, tools)

    def _render_open(self, messages: list[dict[str, object]], tools: list[dict[str, object]] | None) -> str:
        """The prompt up to the end of the last message's text."""
        content = messages[-1].get("content") if messages else None
        if not isinstance(content, str):
            raise InvalidRequest(
                "continue_final_message needs a last message whose content is a text", param="messages"
            )
        marked: dict[str, object] = {**messages[-1], "content": content + _END_MARK + " "}
        rendered = self._render([*messages[:-1], marked], False, tools)
        if _END_MARK not in rendered:
            raise InvalidRequest(
                "the chat template leaves the last message out, so it cannot be continued", param="messages"
            )
        kept, _, rest = rendered.rpartition(_END_MARK)
        return kept if rest.startswith(" ") else kept.rstrip()

    def _render(
        self, messages: list[dict[str, object]], add_generation_prompt: bool, tools: list[dict[str, object]] | None
    ) -> str:
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=tools, documents=None
            )
        except (
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            # Whatever Python raises inside the template: it did not expect messages like these.
            reason = str(error) or type(error).__name__
            raise InvalidRequest(f"the chat template refuses these messages: {reason}", param="messages") from error


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the assistant says, for training; its inside is rendered."""

    tags = {"generation"}  # noqa: RUF012  jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        optimized=False,
        finalize=_at_run_time,
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@pass_context
def _at_run_time(_: Context, value: object) -> object:
    """Keeps constants from being computed where a template is only compiled: `'a' * 2**31` is one, too."""
    return value


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML and everything outside ASCII."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
