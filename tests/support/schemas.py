"""JSON schemas of growing difficulty, the same ones every time, regular expressions, and hostile grammars.

Schema number i has values up to depth 1 + i / 50, and the further it is the more keywords it may use. What could grow
without end is bounded, so that every answer ends. From number 150 on some use keywords that no grammar follows.
"""

import json
import random
from typing import Any

NUM_SCHEMAS = 200
UNSUPPORTED: list[dict[str, Any]] = [
    {"not": {"type": "null"}},
    {"type": "array", "uniqueItems": True},
    {"if": {"type": "string"}, "then": {"maxLength": 3}},
    {"type": "array", "contains": {"type": "integer"}},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "object", "propertyNames": {"maxLength": 3}},
    {"type": "string", "format": "isbn"},
]
WORDS = ["red", "grün", "北京", "Ёлка", "naïve", "a b", 'say "hi"', "back\\slash", "tab\t", "", "0", "null"]
NAMES = ["id", "name", "age", "città", "名前", "a b", "x-y", "$ref", "type", "items", "nested", "value"]
PATTERNS = [r"^[a-z]{2,5}$", r"^\d{3}-\d{4}$", r"^(foo|bar)+$", r"^[A-Z][a-z]*( [A-Z][a-z]*){0,2}$", r"^#[0-9a-f]{6}$"]
FORMATS = ["date", "email", "ipv4", "ipv6", "uuid", "date-time", "time"]


def schema(number: int) -> dict[str, Any]:
    """One of NUM_SCHEMAS."""
    rng = random.Random(number)
    whole = _value(rng, depth=1 + number // 50, skill=number)
    if number >= 150 and number % 5 == 0:
        whole = {"type": "array", "prefixItems": [whole, rng.choice(UNSUPPORTED)], "items": False, "minItems": 2}
    return whole


def _value(rng: random.Random, *, depth: int, skill: int) -> dict[str, Any]:
    kinds = [_integer, _string, _boolean, _enum]
    if skill > 20:
        kinds += [_number, _null_or, _pattern, _const]
    if skill > 60:
        kinds += [_format, _multiple]
    if depth > 0:
        kinds += [_object] * 4 + [_array] * 2
        if skill > 80:
            kinds += [_any_of, _tuple, _map]
        if skill > 120:
            kinds += [_all_of, _reference, _one_of]
    return rng.choice(kinds)(rng, depth, skill)


def _integer(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    low = rng.choice([-1000, -5, 0, 1])
    return {"type": "integer", "minimum": low, "maximum": low + rng.choice([3, 120, 10**6])}


def _number(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    """Quarters: a small model writes the digits of a number without a last one until it is cut off."""
    return {"type": "number", "minimum": rng.choice([-1, 0]), "maximum": rng.choice([1, 99]), "multipleOf": 0.25}


def _multiple(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"type": "integer", "multipleOf": rng.choice([5, 7, 12]), "minimum": 0, "maximum": 1000}


def _string(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"type": "string", "minLength": rng.choice([0, 1, 3]), "maxLength": rng.choice([5, 20])}


def _pattern(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"type": "string", "pattern": rng.choice(PATTERNS), "maxLength": 30}


def _format(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"type": "string", "format": rng.choice(FORMATS), "maxLength": 40}


def _boolean(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _enum(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"enum": rng.sample([*WORDS, 1, None, True, [1, "x"], {"k": []}], k=4)}


def _const(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"const": rng.choice([*WORDS, 0, -1.5, None, {"a": [1]}])}


def _null_or(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"type": ["null", "boolean"]}


def _array(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    low = rng.choice([0, 1, 2])
    items = _value(rng, depth=depth - 1, skill=skill)
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + rng.choice([0, 2])}


def _tuple(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    items = [_value(rng, depth=depth - 1, skill=skill) for _ in range(rng.choice([1, 2, 3]))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _object(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    names = rng.sample(NAMES, k=rng.randint(1, min(2 + skill // 40, 6)))
    required = [name for name in names if rng.random() < 0.8]
    properties = {name: _value(rng, depth=depth - 1, skill=skill) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _map(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    values = _value(rng, depth=depth - 1, skill=skill)
    return {
        "type": "object",
        "patternProperties": {"^[a-z]{1,6}$": values},
        "additionalProperties": False,
        "maxProperties": 1,
    }


def _any_of(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"anyOf": [_value(rng, depth=depth - 1, skill=skill) for _ in range(rng.choice([2, 3]))]}


def _one_of(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"oneOf": [_integer(rng, depth, skill), _string(rng, depth, skill), {"type": "null"}]}


def _all_of(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    return {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 300}, {"type": ["integer", "string"]}]}


def _reference(rng: random.Random, depth: int, skill: int) -> dict[str, Any]:
    node = {
        "type": "object",
        "properties": {"v": {"enum": [1, 2]}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]}},
        "required": ["v", "next"],
        "additionalProperties": False,
    }
    return {"$defs": {"leaf": {"enum": ["end", "stop"]}}, **node} if depth == 1 + skill // 50 else {"enum": ["leaf"]}


EXPRESSIONS = [
    r"yes|no",
    r"\d{3}-\d{4}",
    r"[A-Z][a-z]{2,8}",
    r"(\+\d{1,3} )?\d{6,10}",
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    r"(0?[1-9]|1[0-2]):[0-5]\d (am|pm)",
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",
    r"#[0-9A-Fa-f]{6}",
    r"[a-z]{1,12}@[a-z]{1,12}\.(com|org|net)",
    r"-?\d{1,8}(\.\d{1,3})?",
    r"(ab|cd){2,6}",
    r"a?b?c?d?e",
    r"(a|b)*c{3}(a|b){0,4}",
    r"[一-龥]{2,6}",
    r"[а-яё]{3,10}",
    r"(?i)hello( world)?",
    r"[^\s,]{1,12}(,[^\s,]{1,12}){0,3}",
    r"x{10,20}",
    r"""\"[^\"\\]{0,20}\"""",
    r"\[(\d(, \d){0,4})?\]",
    r"<b>[^<]{1,20}</b>",
    r"(\w{1,8} ){2}\w{1,8}",
    r"\\d\+",
    r"[.*+?^$]{1,5}",
    r"v\d{1,2}\.\d{1,2}\.\d{1,2}(-rc\d)?",
    r"(GET|POST) /[a-z/]{0,15}",
    r"[A-Z]{2}\d{2}( \d{4}){4}",
    r"(north|south)?(east|west)?!",
    r"((foo|bar)baz?){1,3}",
    r"é{2}ü{1,2}ß?",
]


def _json(value: object) -> dict[str, str]:
    return {"guided_json": json.dumps(value)}


def _fan(width: int, depth: int, key: str) -> dict[str, Any]:
    rules = {f"d{i}": {key: [{"$ref": f"#/$defs/d{i + 1}"}] * width} for i in range(depth)}
    return {"$defs": {**rules, f"d{depth}": {}}, "$ref": "#/$defs/d0"}


def _doubling(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        value = {"oneOf": [value, {"type": "array", "items": value}]}
    return value


HOSTILE: dict[str, dict[str, Any]] = {
    "items, 5,000 deep": {"guided_json": '{"items":' * 5000 + "{}" + "}" * 5000},
    "not, 200 deep": {"guided_json": '{"not":' * 200 + "{}" + "}" * 200},
    "anyOf, 400 deep": {"guided_json": '{"anyOf":[' * 400 + "{}" + "]}" * 400},
    "oneOf, doubled 12 times": _json(_doubling(12)),
    "15,000 choices of enum": _json({"enum": [f"value {i}" for i in range(15_000)]}),
    "40,000 numbers": _json({"enum": list(range(40_000))}),
    "a constant of 200,000 characters": _json({"const": "a" * 200_000}),
    "5,000 properties": _json({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}}),
    "20,000 properties": _json({"type": "object", "properties": {f"p{i}": {} for i in range(20_000)}}),
    "multipleOf, large": _json({"type": "integer", "multipleOf": 999_983}),
    "multipleOf, two": _json({"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}),
    "multipleOf, 300": _json({"prefixItems": [{"type": "integer", "multipleOf": 9973 - i} for i in range(300)]}),
    "multipleOf, tiny": _json({"type": "number", "multipleOf": 1e-9}),
    "a number of 600 digits": _json({"type": "number", "minimum": 1e-300, "maximum": 1e300}),
    "1,000 ranges": _json({"prefixItems": [{"type": "integer", "minimum": -(10**17) + i} for i in range(1000)]}),
    "minLength, a million": _json({"type": "string", "minLength": 1_000_000}),
    "maxLength, a billion": _json({"type": "string", "maxLength": 1_000_000_000}),
    "maxItems, a billion": _json({"type": "array", "maxItems": 1_000_000_000}),
    "minProperties": _json({"type": "object", "minProperties": 100_000}),
    "a pattern for backtracking": _json({"type": "string", "pattern": "^(a+)+$"}),
    "a pattern of 10 ** 8": _json({"type": "string", "pattern": "((((a{1,100}){1,100}){1,100}){1,100})"}),
    "a pattern of 2 ** 24 states": _json({"type": "string", "pattern": "(a|b)*a(a|b){24}"}),
    "overlapping patterns": _json({"patternProperties": {f"^(a|b)*a(a|b){{{i}}}$": {} for i in range(1, 40)}}),
    "a circle of references": _json(
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    ),
    "references, 10 ** 30": _json(_fan(10, 30, "prefixItems")),
    "allOf, 8 ** 20": _json(_fan(8, 20, "allOf")),
    "a product of anyOf": _json(
        {"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(4)]} for i in range(12)]}
    ),
    "a schema elsewhere": _json({"$ref": "http://169.254.169.254/latest"}),
    "a file": _json({"$ref": "file:///etc/passwd"}),
    "no type": _json({"type": "sound"}),
    "no schema": {"guided_json": "hiccup"},
    "an expression of 10 ** 8": {"guided_regex": "(((a{1,100}){1,100}){1,100}){1,100}"},
    "an expression of 2 ** 30 states": {"guided_regex": "(a|b)*a(a|b){30}"},
    "an expression over all of Unicode": {"guided_regex": r"(\w{1,500}\W{1,500}){1,200}"},
    "an expression of 15,000 words": {"guided_regex": "|".join(f"{i:06d}x*" for i in range(15_000))},
    "an expression, 3,000 deep": {"guided_regex": "(" * 3000 + ")" * 3000},
    "an ambiguous grammar": {"guided_grammar": 'start: s\ns: s s | s s s | "a" | ""'},
    "rules, 5,000 deep": {
        "guided_grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(5000)) + 'r5000: "x"'
    },
    "a grammar of itself": {"guided_grammar": "root ::= root root | root"},
    "15,000 choices": {"guided_choice": [f"choice {i}" for i in range(15_000)]},
}
