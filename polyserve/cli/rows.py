"""Requests in a JSONL file: one object a line, read and checked as a whole before anything runs.

{"prompt": "text" or [ids]} or {"messages": [{"role": ..., "content": ...}]}, besides these any field of SamplingParams,
which wins over the command's flag, and "id", which is copied to the answer's line.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import msgspec

from polyserve.api.frontend import Message
from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams

_SAMPLING_FIELDS = frozenset(field.name for field in dataclasses.fields(SamplingParams))
_MESSAGE_FIELDS = frozenset(field.name for field in dataclasses.fields(Message))
_CHAT_DEFAULTS = {"max_tokens": None}  # as for a chat request to the server


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One request: a prompt (text or token ids) or a conversation."""

    prompt: str | list[int] | None
    messages: list[dict[str, object]] | None
    params: SamplingParams
    id: object | None = None


def read_rows(lines: Iterable[bytes], given: Mapping[str, object]) -> list[Row]:
    """The requests of a file, in order. given: sampling parameters for rows that do not say otherwise.

    Raises InvalidRequest with the number of the first bad line.
    """
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_read_row(line, given))
        except (ValueError, InvalidRequest) as error:
            raise InvalidRequest(f"line {number}: {error}") from error
    return rows


def _read_row(line: bytes, given: Mapping[str, object]) -> Row:
    if not line.strip():
        raise ValueError("empty, where a JSON object was expected")
    fields = msgspec.json.decode(line, type=dict[str, object])
    prompt = fields.pop("prompt", None)
    messages = fields.pop("messages", None)
    row_id = fields.pop("id", None)
    if (prompt is None) == (messages is None):
        raise ValueError("one of prompt and messages must be there, and not both")
    for name in fields:
        if name not in _SAMPLING_FIELDS:
            raise ValueError(f"unknown field {name!r}")
    defaults = _CHAT_DEFAULTS if prompt is None else {}
    return Row(
        prompt=None if prompt is None else _prompt(prompt),
        messages=None if messages is None else _messages(messages),
        params=msgspec.convert({**defaults, **given, **fields}, SamplingParams, str_keys=True),
        id=row_id,
    )


def _prompt(value: object) -> str | list[int]:
    try:
        return msgspec.convert(value, str | list[int])
    except msgspec.ValidationError as error:
        raise ValueError(f"prompt must be text or a list of token ids: {error}") from error


def _messages(value: object) -> list[dict[str, object]]:
    """The conversation as the chat template takes it, checked as the server checks one."""
    try:
        given = msgspec.convert(value, list[dict[str, object]])
        messages = msgspec.convert(given, list[Message])
    except msgspec.ValidationError as error:
        raise ValueError(f"messages must be a list of objects with a role and a content: {error}") from error
    if not messages:
        raise ValueError("messages must not be empty")
    for message in given:
        for name in message.keys() - _MESSAGE_FIELDS:
            raise ValueError(f"unknown field {name!r} in a message")
    return [message.for_template() for message in messages]
