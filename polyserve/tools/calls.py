"""One request's way of calling functions: its parameters beforehand, and a parser for each of its choices."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from polyserve.errors import InvalidRequest
from polyserve.sampling_params import GRAMMAR_FIELDS
from polyserve.tokenizer.base import Tokenizer
from polyserve.tools.definition import ToolUse
from polyserve.tools.formats import FORCED, CallFormat
from polyserve.tools.grammar import grammar_of
from polyserve.tools.parser import CallParser


@dataclass(frozen=True, slots=True)
class Calls:
    """What a request may call, and how its model writes that."""

    use: ToolUse
    form: CallFormat

    @classmethod
    def of(cls, use: ToolUse, form: CallFormat | None) -> "Calls":
        """form: the model's own; None if it has none. Raises InvalidRequest if it has to know of calls by itself."""
        if form is None and not use.calls_only:
            message = (
                "tool_choice must be 'none', 'required' or a function here: the chat template does not tell how this "
                "model writes calls. The server's --tool-call-parser can"
            )
            raise InvalidRequest(message, param="tool_choice")
        return cls(use, form or FORCED)

    def guide(self, options: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """The options of SamplingParams with the grammar of such a message. A schema among them is for other messages.

        Raises InvalidRequest if they hold another grammar.
        """
        options = dict(options)
        schema = _object(options.pop("guided_json", None))
        other = next((name for name in GRAMMAR_FIELDS if name in options), None)
        if other is not None:
            raise InvalidRequest(f"{other} cannot go with tools, whose calls follow a grammar", param=other)
        marker_id = _special_id(tokenizer, self.form.marker)
        return {
            **options,
            "guided_grammar": grammar_of(self.use, self.form, marker_id=marker_id, content_schema=schema),
        }

    def shown_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Special tokens that the parser has to see."""
        ids = (_special_id(tokenizer, text) for text in (self.form.marker, self.form.opening))
        return frozenset(token_id for token_id in ids if token_id is not None)

    def parser(self) -> CallParser:
        """For one choice."""
        names = [tool.name for tool in self.use.callable]
        return CallParser(self.form, names, self._new_id)

    def _new_id(self) -> str:
        digits = uuid.uuid4().hex[: self.form.id_length]
        return digits if len(digits) < 10 else f"call_{digits}"


def _object(schema: str | None) -> dict[str, Any] | None:
    """The schema of messages that call nothing, if there is one."""
    if schema is None:
        return None
    try:
        value = orjson.loads(schema)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest("guided_json must be the schema of an object beside tools", param="guided_json")
    return value


def _special_id(tokenizer: Tokenizer, text: str | None) -> int | None:
    """The special token that is this text."""
    data = (text or "").encode()
    return next((i for i in tokenizer.special_ids if data and tokenizer.token_bytes(i) == data), None)
