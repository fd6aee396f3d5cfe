"""pydantic's report of what is wrong with a body, as one sentence: the field, what was wanted, what came."""

from collections.abc import Mapping, Sequence
from typing import Any

from polyserve.api.frontend import shortened
from polyserve.errors import InvalidRequest

WANTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of at most 64 bits",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def sentence(error: Mapping[str, Any]) -> InvalidRequest:
    """The error for one entry of `ValidationError.errors()`, whose location starts with "body"."""
    location = list(error["loc"][1:])
    kind, given = error["type"], error["input"]
    if kind == "json_invalid":
        return InvalidRequest(f"the request body is not JSON: {error['ctx']['error']} (at character {error['loc'][1]})")
    if not location:
        came = "nothing" if kind == "missing" else described(given)
        return InvalidRequest(f"the request body must be a JSON object, got {came}")
    field = field_name(location)
    if kind == "missing":
        return InvalidRequest(f"{field} is required", param=field)
    if kind == "extra_forbidden":
        return InvalidRequest(f"{field} is not a field of this request", param=field, code="unknown_field")
    if kind == "literal_error":
        return InvalidRequest(f"{field} must be {error['ctx']['expected']}, got {described(given)}", param=field)
    if kind in WANTED:
        return InvalidRequest(f"{field} must be {WANTED[kind]}, got {described(given)}", param=field)
    return InvalidRequest(f"{field} {error['msg']}", param=field)  # one of our own checks in `schemas`


def field_name(location: Sequence[str | int]) -> str:
    """`messages[0].content` for ("messages", 0, "content"); a name of the client's own making is cut short."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            shown = part if part.isidentifier() and len(part) <= 60 else shortened(part)
            name += f".{shown}" if name else shown
    return name


def described(value: object) -> str:
    """What came, short enough for a sentence."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, int | float):
        return str(value)
    return f"a list of length {len(value)}" if isinstance(value, list) else "an object"
