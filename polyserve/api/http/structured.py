"""`response_format` and `guided_json`: the two ways in which a body asks for JSON, as a schema's text."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, JsonValue, PlainValidator, WithJsonSchema

from polyserve.api.http.fields import Body, invalid
from polyserve.api.http.sentences import described
from polyserve.errors import InvalidRequest

ANY_OBJECT = '{"type":"object"}'


def _schema_text(value: object) -> str:
    """A schema, or its text as it came."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict | bool):
        raise invalid(f"must be a JSON schema, or the text of one, got {described(value)}")
    return orjson.dumps(value).decode()


Schema = Annotated[
    str, PlainValidator(_schema_text), WithJsonSchema({"anyOf": [{"type": t} for t in ("object", "boolean", "string")]})
]


class JsonSchemaFormat(Body):
    """The schema of an answer."""

    name: str
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None
    """The schema is followed either way; a keyword that cannot be followed is refused either way."""


class ResponseFormat(Body):
    """What kind of text the answer is."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def schema_text(self) -> str | None:
        """The schema that the answer follows; None for any text. Raises InvalidRequest if there is none to follow."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            field = "response_format.json_schema"
            raise InvalidRequest(f"{field} belongs to the type 'json_schema', and is required there", param=field)
        if self.json_schema is None:
            return ANY_OBJECT if self.type == "json_object" else None
        return orjson.dumps(self.json_schema.schema_ or {}).decode()


def add_grammar(options: dict[str, Any], response_format: ResponseFormat | None) -> None:
    """Put what `response_format` asks for among the fields of SamplingParams."""
    schema = None if response_format is None else response_format.schema_text()
    if schema is None:
        return
    other = next((name for name in options if name.startswith("guided_")), None)
    if other is not None:
        message = f"{other} cannot go with response_format: an answer follows one grammar"
        raise InvalidRequest(message, param=other)
    options["guided_json"] = schema
