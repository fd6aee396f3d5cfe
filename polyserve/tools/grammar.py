"""The grammar of a message that may, or has to, call functions: llguidance's Lark, as `guided_grammar` takes it.

What is written is the format's canonical text, and each call's arguments follow the schema of the function it names.
Free text goes up to the marker, if there is one; without one, text that begins as a call does has to become one.
"""

import json

from polyserve.sampling_params import JSON_SPACE
from polyserve.tools.definition import Tool, ToolUse
from polyserve.tools.formats import CallFormat

MAX_CALLS = 16  # in one message, so that no model calls for ever

_TEXT = "TEXT: /(.|\\n)*/"
_TEXT_NO_CALL = 'TEXT: /(.|\\n)*/ & ~/[ \\t\\n]*(```json)?[ \\t\\n]*\\{[ \\t\\n]*"name"(.|\\n)*/'


def grammar_of(
    use: ToolUse, form: CallFormat, *, marker_id: int | None, content_schema: dict[str, object] | None = None
) -> str:
    """marker_id: the marker's token, if it is a special one.  content_schema: what a message without calls follows."""
    begin = _quoted(form.begin, form, marker_id)
    if content_schema is not None and form.marker is None:
        begin = f'"{{" {_quoted(form.begin.removeprefix("{"))}'  # the same lexeme as in the schema's JSON
    lines = [
        f"calls: {begin} call {_quoted(form.end)} {_further(use, form, marker_id)} {_quoted(form.last)}",
        "call: " + " | ".join(f"call_{number}" for number in range(len(use.callable))),
    ]
    for number, tool in enumerate(use.callable):
        name = json.dumps(tool.name) if form.quoted else tool.name
        lines.append(f"call_{number}: {_quoted(name + form.middle)} arguments_{number}")
        lines.append(f"arguments_{number}: %json {_schema(tool)}")
    return "\n".join([*_start(use, form, marker_id, content_schema), *lines])


def _start(
    use: ToolUse, form: CallFormat, marker_id: int | None, content_schema: dict[str, object] | None
) -> list[str]:
    if use.calls_only:
        return ["start: calls"]
    if content_schema is not None:
        return ["start: calls | content", f"content: %json {_spaced(content_schema)}"]
    if form.marker is None:
        return ["start: calls | TEXT", _TEXT_NO_CALL]
    rest = f"{_quoted(form.begin.removeprefix(form.marker))} call {_quoted(form.end)}"
    if not form.text_around:
        rest = f"{rest} {_further(use, form, marker_id)} {_quoted(form.last)}"
    more = "" if use.only_one or not form.text_around else f"{{0,{MAX_CALLS}}} TEXT"
    if marker_id is not None:
        return [f"start: TEXT | (TEXT <[{marker_id}]> {rest}){more}", _TEXT]
    return [
        f"start: TEXT | (marked {rest}){more}",
        f"marked[lazy]: TEXT {_quoted(form.marker)}",
        _TEXT,
    ]


def _further(use: ToolUse, form: CallFormat, marker_id: int | None) -> str:
    if use.only_one:
        return ""
    return f"({_quoted(form.between, form, marker_id)} call {_quoted(form.end)}){{0,{MAX_CALLS - 1}}}"


def _quoted(text: str, form: CallFormat | None = None, marker_id: int | None = None) -> str:
    """A literal, with the marker in it as the special token that it is."""
    if form is not None and form.marker is not None and marker_id is not None:
        before, _, after = text.partition(form.marker)
        return f"{_quoted(before)} <[{marker_id}]> {_quoted(after)}"
    return json.dumps(text, ensure_ascii=False) if text else ""


def _schema(tool: Tool) -> str:
    """The schema of a function's arguments, as JSON."""
    schema = dict(tool.parameters or {"type": "object", "properties": {}, "additionalProperties": False})
    schema.setdefault("type", "object")
    return _spaced(schema, lenient=not tool.strict)


def _spaced(schema: dict[str, object], **more: object) -> str:
    own = schema.get("x-guidance")
    options = {"whitespace_pattern": JSON_SPACE, **more, **(own if isinstance(own, dict) else {})}
    return json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)
