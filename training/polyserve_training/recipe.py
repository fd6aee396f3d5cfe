"""A recipe out of a YAML file and `key=value` words: `optimizer.lr=1e-4`, `stages.0.steps=100`.

A key that there is not, at any depth, is refused by its full name; so is a value of another type, and whatever the
recipe's own checks find. Numbers may be written as YAML takes for strings: 6e-5.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

import msgspec
import yaml

from polyserve.errors import TrainingError
from polyserve_training.config import Recipe


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check. Raises TrainingError, which names the file and the key."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise TrainingError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: must hold keys and values, got {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    try:
        _refuse_unknown(values, Recipe, "")
        return msgspec.convert(values, Recipe, strict=False)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        raise TrainingError(f"{path}: {f'{place[:-1]}: ' if place else ''}{message}") from error
    except ValueError as error:
        raise TrainingError(f"{path}: {error}") from error


def as_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, defaults included: what is written beside a checkpoint."""
    return cast(dict[str, Any], msgspec.to_builtins(recipe))


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise TrainingError(f"{override!r} must be KEY=VALUE, such as optimizer.lr=1e-4")
    *path, last = key.split(".")
    place: Any = values
    for part in path:
        if isinstance(place, dict):
            place = place.setdefault(part, {})
        elif isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        else:
            raise TrainingError(f"{override!r}: there is no {part} to set anything in")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TrainingError(f"{override!r}: not valid YAML: {error}") from error
    if isinstance(place, dict):
        place[last] = value
    elif isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = value
    else:
        raise TrainingError(f"{override!r}: there is no {last} to set")


def _refuse_unknown(values: object, kind: Any, name: str) -> None:
    """Raise ValueError for a key that the dataclasses of `kind` do not have."""
    if get_origin(kind) is UnionType:
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is tuple and isinstance(values, list):
        for number, value in enumerate(values):
            _refuse_unknown(value, get_args(kind)[0], f"{name}{number}.")
    if not dataclasses.is_dataclass(kind) or not isinstance(values, dict):
        return
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"unknown key {name}{key}; there is {', '.join(hints)}")
        _refuse_unknown(value, hints[key], f"{name}{key}.")
