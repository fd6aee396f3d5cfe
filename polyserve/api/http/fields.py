"""What bodies are made of: their base, and types of fields that JSON lacks, each with its check and JSON schema.

A check raises `invalid(...)`, whose message goes on after the field's name.
"""

from dataclasses import dataclass, fields
from enum import Enum
from typing import Annotated, Any, cast

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from polyserve.api.http.sentences import described
from polyserve.sampling_params import RANGES, SamplingParams

SAMPLING = {field.name: field for field in fields(SamplingParams)}
RENAMED = {"max_completion_tokens": "max_tokens", "top_logprobs": "logprobs"}  # fields with the range of another
MAX_METADATA_CHARACTERS = 512


class Metadata(Enum):
    """Marks a field that OpenAI defines to have no effect on the answer."""

    ACCEPTED = "accepted"
    ECHOED = "echoed"  # the response has a place for it


ACCEPTED, ECHOED = Metadata.ACCEPTED, Metadata.ECHOED


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add to the JSON schema what becomes of each field, and what SamplingParams says of those that it has."""
    field_of = {field.alias or name: field for name, field in model.model_fields.items()}
    for name, described_field in schema.get("properties", {}).items():
        described_field.pop("title", None)
        marks = field_of[name].metadata
        metadata = next((mark.value for mark in marks if isinstance(mark, Metadata)), "honoured")
        described_field["x-support"] = "refused" if any(isinstance(mark, Only) for mark in marks) else metadata
        if name in SAMPLING and "description" not in described_field:
            described_field["description"] = SAMPLING[name].metadata["help"]
            if isinstance(SAMPLING[name].default, int | float):
                described_field["default"] = SAMPLING[name].default
        limit = RANGES.get(RENAMED.get(name, name))
        for kind in described_field.get("anyOf", ()):
            if limit is not None and kind.get("type") in ("integer", "number"):
                kind |= {"exclusiveMinimum" if limit.open_low else "minimum": limit.low, "maximum": limit.high}


class Body(BaseModel):
    """A JSON object. A string below a field is its description."""

    model_config = ConfigDict(
        strict=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=cast(Any, _describe)
    )


def invalid(message: str) -> PydanticCustomError:
    """`message` is the sentence that follows the field's name."""
    return PydanticCustomError("invalid", "{message}", {"message": message})


@dataclass(frozen=True, eq=False)  # typing takes equal metadata for the same, and 1 == True
class Only:
    """Refuses a field unless it holds null or one of the values that ask for nothing."""

    harmless: tuple[JsonValue, ...] = ()

    def check(self, value: JsonValue) -> JsonValue:
        if value is not None and not any(type(value) is type(other) and value == other for other in self.harmless):
            allowed = "".join(f"{orjson.dumps(other).decode()} or " for other in self.harmless)
            raise invalid(f"is not supported by this server: it must be {allowed}left out, got {described(value)}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self.harmless]}


def _prompts(value: Any) -> list[str | list[int]]:
    """One prompt or several, each a text or its token ids, as a list."""
    prompts: list[Any] = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    for position, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            continue
        if not isinstance(prompt, list) or not all(type(token_id) is int for token_id in prompt):
            where = f" at position {position}" if len(prompts) > 1 else ""
            wanted = "must be a string, a list of token ids, or a list of these"
            raise invalid(f"{wanted}, got {described(prompt)}{where}")
    return prompts


def _token_numbers(value: object) -> object:
    """JSON's keys are strings: those of logit_bias hold token ids."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise invalid(f"must have token ids as keys, got {described(key)}")
    return {int(key): bias for key, bias in value.items()}


def _stops(value: object) -> list[str]:
    """One stop string or several, as a list."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise invalid(f"must be a string or a list of strings, got {described(value)}")
    for position, stop in enumerate(stops):
        if not isinstance(stop, str):
            raise invalid(f"must be a string or a list of strings, got {described(stop)} at position {position}")
    return stops


def _content(value: object) -> str | None:
    """The text of a message: a string, or text parts, one to a line. A part of a refusal is text as well."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid(f"must be a string or a list of text parts, got {described(value)}")
    texts = []
    for position, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal"):
            got = described(part) if kind is None else f"one of type {described(kind)}"
            raise invalid(f"must have parts of type 'text' only, got {got} at position {position}")
        if set(part) != {"type", kind} or not isinstance(part[kind], str):
            raise invalid(f"must have {kind} parts of a 'type' and a '{kind}', a string; position {position} has not")
        texts.append(part[kind])
    return "\n".join(texts)


def _short(value: str) -> str:
    if len(value) > MAX_METADATA_CHARACTERS:
        raise invalid(f"must have at most {MAX_METADATA_CHARACTERS} characters, got {len(value)}")
    return value


PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        },
    ]
}


def _part_schema(kind: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"const": kind}, kind: {"type": "string"}},
        "required": ["type", kind],
        "additionalProperties": False,
    }


CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"anyOf": [_part_schema("text"), _part_schema("refusal")]}},
        {"type": "null"},
    ]
}
STOP_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _early_stopping(value: object) -> bool | str:
    if not isinstance(value, bool) and value != "never":
        raise invalid(f"must be true, false or 'never', got {described(value)}")
    return value if isinstance(value, bool) else "never"


EarlyStopping = Annotated[bool | str, PlainValidator(_early_stopping), WithJsonSchema({"enum": [True, False, "never"]})]
Prompts = Annotated[list[str | list[int]], PlainValidator(_prompts), WithJsonSchema(PROMPT_SCHEMA)]
LogitBias = Annotated[dict[int, float], BeforeValidator(_token_numbers)]
Stops = Annotated[list[str], PlainValidator(_stops), WithJsonSchema(STOP_SCHEMA)]
Content = Annotated[str | None, PlainValidator(_content), WithJsonSchema(CONTENT_SCHEMA)]
Label = Annotated[str, AfterValidator(_short)]
Unsupported = Annotated[JsonValue, Only()]
