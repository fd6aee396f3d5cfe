"""The chapter on HTTP, from the application's own OpenAPI document."""

import json
from collections.abc import Iterable
from typing import Any, cast

from polyserve.api.frontend import Frontend
from polyserve.api.http.app import create_app
from polyserve.api.protection import Protection
from polyserve.api.reference.tables import table

Schema = dict[str, Any]
Shown = dict[str, None]  # names of objects that were mentioned, in order


def http_chapter() -> str:
    """Every endpoint, then the objects that they take and answer with."""
    nobody = cast(Frontend, None)  # routes only ask it when they are called
    described = create_app(nobody, Protection()).openapi()
    shown: Shown = {}
    parts = ["## HTTP\n"]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            parts.append(_endpoint(method.upper(), path, operation, shown))
    num_written = 0
    while num_written < len(shown):  # each may name others
        name = list(shown)[num_written]
        parts.append(_object(name, described["components"]["schemas"][name], shown))
        num_written += 1
    return "\n".join(parts)


def _endpoint(method: str, path: str, operation: Schema, shown: Shown) -> str:
    lines = [f"### {method} {path}\n"]
    if "description" in operation:
        lines.append(operation["description"] + "\n")
    asked = [
        [f"`{item['name']}`", _type(item["schema"], shown), _limits(item["schema"]), item.get("description", "")]
        for item in operation.get("parameters", ())
    ]
    if asked:
        lines.append(table(("parameter", "type", "limits", "meaning"), asked))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        lines.append(f"Takes {_type(body, shown)}.\n")
    content = operation["responses"].get("200", {}).get("content", {})
    kinds = [_type(kind["schema"], shown) for name, kind in content.items() if name == "application/json"]
    kinds += [f"`{name}`" for name in content if name != "application/json"]
    lines.append(f"Answers with {' or '.join(kinds)}.\n")
    return "\n".join(lines)


def _object(name: str, schema: Schema, shown: Shown) -> str:
    fields = schema.get("properties", {})
    is_request = any("x-support" in field for field in fields.values())
    if is_request:
        headings: tuple[str, ...] = ("field", "becomes", "type", "default", "limits", "meaning")
        required = schema.get("required", ())
        rows = [_asked(field, value, shown, required=field in required) for field, value in fields.items()]
    else:
        headings = ("field", "type", "meaning")
        rows = [[f"`{field}`", _type(value, shown), value.get("description", "")] for field, value in fields.items()]
    about = f"{schema['description']}\n\n" if "description" in schema else ""
    return f"#### {name}\n\n{about}{table(headings, rows)}"


def _asked(name: str, schema: Schema, shown: Shown, *, required: bool) -> list[str]:
    default = "required" if required else ""
    if schema.get("default") is not None:
        default = f"`{json.dumps(schema['default'])}`"
    return [
        f"`{name}`", schema["x-support"], _type(schema, shown), default, _limits(schema), schema.get("description", "")
    ]  # fmt: skip


def _type(schema: Schema, shown: Shown) -> str:
    """A JSON schema in a few words; objects become links, and are noted to be shown."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name == "JsonValue":
            return "anything"
        shown[name] = None
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(kind, shown) for kind in _but_null(schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        values = [value for value in schema.get("enum", [schema.get("const")]) if value is not None]
        return " or ".join(f"`{json.dumps(value)}`" for value in values) or "nothing"
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}), shown)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'], shown)}"
    if kind == "object" and "properties" in schema:
        return "object of " + ", ".join(f"`{name}`" for name in schema["properties"])
    return kind


def _limits(schema: Schema) -> str:
    """The range of numbers; sizes are in the chapter on limits."""
    limits = []
    for kind in schema.get("anyOf", [schema]):
        for word, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤")):
            if word in kind:
                limits.append(f"{sign} {_number(kind[word])}")
    return ", ".join(limits)


def _number(value: float) -> str:
    power = int(abs(value)).bit_length() - 1
    return f"{value:.16g}" if power < 53 else f"{'-' * (value < 0)}2^{power}"


def _but_null(kinds: Iterable[Schema]) -> list[Schema]:
    return [kind for kind in kinds if kind.get("type") != "null"]
