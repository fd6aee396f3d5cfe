"""Checked reading of what is not trusted: `config.json`, `generation_config.json`, the metadata of a GGUF file.

A value that is missing, of another type or out of range is a ModelLoadError that names the file, the field, what was
wanted and what came. A field that is present with the value null counts as absent, as it does for `transformers`.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from polyserve.errors import ModelLoadError

MAX_INTEGER = 2**31 - 1
MAX_LAYERS = 10_000  # more is damage, and would be believed until memory is full


@dataclass(frozen=True, slots=True)
class Fields:
    """Values by name, and the words that say in an error where they come from."""

    values: dict[str, object]
    source: str

    def fail(self, message: str) -> NoReturn:
        raise ModelLoadError(f"{self.source}: {message}")

    def get(self, name: str) -> object:
        return self.values.get(name)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def first(self, *names: str) -> str:
        """The first of several spellings that is there; the first of all if none is."""
        return next((name for name in names if self.has(name)), names[0])

    def integer(self, name: str, default: int | None = None, *, at_most: int = MAX_INTEGER) -> int:
        """An integer from 1 to `at_most`: a size or a count. Without a default it must be there."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"{name} must be an integer, got {value!r}")
        if not 0 < value <= at_most:
            self.fail(f"{name} must be from 1 to {at_most}, got {value}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0: a base, a factor, an epsilon, a cap. Without a default it must be there."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"{name} must be a number, got {value!r}")
        if not 0 < value < math.inf:
            self.fail(f"{name} must be a finite number above 0, got {value}")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return self.number(name) if self.has(name) else None

    def boolean(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            self.fail(f"{name} must be true or false, got {value!r}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            self.fail(f"{name} must be a string, got {value!r}")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings; empty if it is not there."""
        value = self._value(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(f"{name} must be a list of strings, got {value!r}")
        return value

    def ids(self, name: str, *, vocab_size: int) -> tuple[int, ...]:
        """Token ids: one, or a list of them; none if the field is not there."""
        value = self.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
                self.fail(f"{name} must hold token ids from 0 to {vocab_size - 1}, got {value!r}")
        return tuple(ids)

    def inner(self, name: str) -> "Fields | None":
        """The object stored under a name, if there is one."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(f"{name} must be an object, got {value!r}")
        return Fields(value, f"{self.source}: {name}")

    def refuse(self, name: str, *, unless: object) -> None:
        """Refuse a field that changes the mathematics, unless it is absent or has the one value that is supported."""
        value = self.get(name)
        if value is not None and not (isinstance(value, str | int | float) and value == unless):
            self.fail(f"{name} = {value!r} is not supported; supported: {unless!r}")

    def _value(self, name: str, default: object) -> object:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            self.fail(f"{name} is missing")
        return default


def read_json(path: Path) -> Fields:
    """The object in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelLoadError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{path}: must hold a JSON object, got {type(values).__name__}")
    return Fields(values, str(path))
