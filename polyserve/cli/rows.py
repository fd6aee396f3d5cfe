"""Requests and answers in JSONL files, one object a line. Requests are read and checked as a whole before any runs.

{"prompt": "text" or [ids]} or {"messages": [{"role": ..., "content": ...}]}, besides these any field of SamplingParams,
which wins over the command's flag, and "id", which is copied to the answer's line. An answer's line has the fields of
`RequestOutput` that matter to its reader; the bytes of a token are a list of numbers, as in OpenAI's API.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping

import msgspec

from polyserve.api.conversation import Conversation, Message
from polyserve.errors import InvalidRequest
from polyserve.output import CompletionOutput, LogprobEntry, RequestOutput, TopLogprob
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
    params = msgspec.convert({**defaults, **given, **fields}, SamplingParams, str_keys=True)
    if params.max_tokens == 0 and params.prompt_logprobs is None:
        raise ValueError("max_tokens must be at least 1 unless prompt_logprobs is set, got 0")
    return Row(
        prompt=None if prompt is None else _prompt(prompt),
        messages=None if messages is None else _messages(messages),
        params=params,
        id=row_id,
    )


def answer_line(row: Row, output: RequestOutput) -> str:
    """One request's answers as a line of JSON, without the newline."""
    answer: dict[str, object] = {} if row.id is None else {"id": row.id}
    answer["outputs"] = [_choice(choice) for choice in output.outputs]
    answer["prompt_tokens"] = len(output.prompt_token_ids)
    if output.prompt_logprobs is not None:
        answer["prompt_logprobs"] = [None if entry is None else _entry(entry) for entry in output.prompt_logprobs]
    return json.dumps(answer, ensure_ascii=False)


def _choice(choice: CompletionOutput) -> dict[str, object]:
    fields: dict[str, object] = {
        "index": choice.index,
        "text": choice.text,
        "token_ids": choice.token_ids,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }
    if choice.logprobs is not None:
        fields["cumulative_logprob"] = choice.cumulative_logprob
        fields["logprobs"] = [_entry(entry) for entry in choice.logprobs]
    return fields


def _entry(entry: LogprobEntry) -> dict[str, object]:
    return {**_token(entry), "top": [_token(likely) for likely in entry.top]}


def _token(token: LogprobEntry | TopLogprob) -> dict[str, object]:
    return {
        "token": token.token,
        "token_id": token.token_id,
        "bytes": list(token.bytes),
        "logprob": token.logprob,
    }


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
    Conversation(messages=messages).check()
    return [message.for_template() for message in messages]
