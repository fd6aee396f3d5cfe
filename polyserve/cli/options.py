"""Command-line flags made from the frozen dataclasses that own them: option, default, help and check exist once.

Field        Flag
name         `max_model_len` is `--max-model-len`; a bool `x` is `--x/--no-x`; one field may be the positional argument
annotation   int, float, str; `list[...]` repeats the flag (ids also as `1,2,3`); `dict[int, float]` repeats `ID:VALUE`
metadata     help and choices; a field whose name ends in `_bytes` also takes KiB, MiB and GiB
check        the dataclass's own, run by `Flags.build`; its message then names the flag
A flag that was not given is not passed on: the dataclass's default applies.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

import click

from polyserve.errors import InvalidRequest

T = TypeVar("T")
R = TypeVar("R")

_NONE = object()  # the word `none` on the command line, where leaving the flag out means something else


@dataclasses.dataclass(frozen=True, slots=True)
class Flags(Generic[T]):
    """What the command line said about one dataclass."""

    owner: type[T]
    given: dict[str, object]  # by field name
    defaults: Mapping[str, object]  # where the command's differ from the dataclass's
    argument: str | None = None  # the field that is the command's positional argument

    def build(self) -> T:
        """The dataclass's value. Raises click.UsageError, naming the flag, if the dataclass refuses it."""
        make: Callable[..., T] = self.owner
        try:
            return make(**{**self.defaults, **self.given})
        except (ValueError, InvalidRequest) as error:
            raise click.UsageError(self._naming_the_flag(error)) from error

    def refuse(self, why: str) -> None:
        """Raise click.UsageError if any of these flags was given: here they would be without effect."""
        for name in self.given:
            raise click.UsageError(f"{self._spelt(name)} has no effect {why}")

    def _naming_the_flag(self, error: ValueError | InvalidRequest) -> str:
        """The message of the dataclass's check, with fields (first word, or one with an underscore) spelt as flags."""
        message = re.sub(r"^\w+|\w+_\w+", lambda word: self._spelt(word[0]), str(error))
        if isinstance(error, InvalidRequest) and error.param and self._spelt(error.param) not in message:
            return f"{self._spelt(error.param)}: {message}"
        return message

    def _spelt(self, word: str) -> str:
        """A field's name as it is on the command line; any other word as it is."""
        if word == self.argument:
            return word.upper()
        return flag_name(word) if word in {field.name for field in dataclasses.fields(cast(Any, self.owner))} else word


def flags_of(
    owner: type[Any],
    parameter: str,
    *,
    argument: str | None = None,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    defaults: Mapping[str, object] | None = None,
    section: str = "Options",
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command one flag for each field of the dataclass `owner`; it gets them as `parameter: Flags[owner]`.

    argument: the field that is the command's positional argument.  only, skip: fields with a flag, fields without one.
    defaults: values where the command's default is not the dataclass's.  section: heading of these flags in the help.
    """
    overrides = dict(defaults or {})
    hints = get_type_hints(owner)
    fields = [
        field for field in dataclasses.fields(owner) if field.name not in skip and (not only or field.name in only)
    ]

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(command)
        def with_flags(**values: Any) -> R:
            chosen = {field.name: values.pop(field.name) for field in fields}
            given = {name: None if value is _NONE else value for name, value in chosen.items() if value is not None}
            return command(**values, **{parameter: Flags(owner, given, overrides, argument)})

        params = [_param(field, hints[field.name], overrides, argument=argument, section=section) for field in fields]
        with_flags.__click_params__ = [*getattr(command, "__click_params__", []), *reversed(params)]  # type: ignore[attr-defined]
        return with_flags

    return decorate


def flag_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


class SectionedCommand(click.Command):
    """A command whose help lists derived flags under the heading of their dataclass."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class IdList(click.ParamType[list[int]]):
    """Whole numbers between commas."""

    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if not isinstance(value, str):
            return list(value)
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 1,8,32.", param, ctx)


class _Bias(click.ParamType[tuple[int, float]]):
    name = "id:value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        token_id, _, bias = str(value).partition(":")
        try:
            return int(token_id), float(bias)
        except ValueError:
            self.fail(f"{value!r} is not a token id and a number such as 42:-5.", param, ctx)


class _ByteCount(click.ParamType[int]):
    name = "bytes"
    UNITS: ClassVar = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+) ?([a-z]*)", str(value).lower())
        if match is None or match[2] not in self.UNITS:
            self.fail(f"{value!r} is not a number of bytes such as 1073741824, 512MiB or 1GiB.", param, ctx)
        return int(match[1]) * self.UNITS[match[2]]


class _BoolOr(click.ParamType[object]):
    """True, false, or a word that the field takes besides."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.name = "|".join(("true", "false", *words))
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:
        return value if value in self._words else click.BOOL.convert(value, param, ctx)


class _IntOrNone(click.ParamType[object]):
    name = "integer|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:
        return _NONE if value in ("none", _NONE) else click.INT.convert(value, param, ctx)


class _Option(click.Option):
    """A derived flag: knows its section, and gives None when it was not on the command line."""

    def __init__(self, declarations: list[str], *, section: str, **attributes: Any) -> None:
        super().__init__(declarations, default=None, **attributes)
        self.section = section


def _param(
    field: dataclasses.Field[Any], hint: Any, overrides: Mapping[str, object], *, argument: str | None, section: str
) -> click.Parameter:
    """The click parameter of one field."""
    help_text = _help(field, overrides)
    if field.name == argument:
        return click.Argument([field.name], required=False, default=None, help=help_text)
    name = flag_name(field.name)
    inner = [part for part in get_args(hint) if part is not NoneType] if isinstance(hint, UnionType) else [hint]
    common: dict[str, Any] = {"section": section, "help": help_text}
    if bool in inner and len(inner) == 2:
        return _Option([name], type=_BoolOr(get_args(inner[1])), **common)
    [kind] = inner
    if kind is bool:
        return _Option([f"{name}/--no-{name.removeprefix('--')}"], **common)
    if field.metadata.get("choices"):
        return _Option([name], type=click.Choice(field.metadata["choices"]), **common)
    if get_origin(kind) in (list, dict):
        element, collect = _REPEATED[kind]
        return _Option(
            [name], type=element, multiple=True, callback=lambda _ctx, _param, values: collect(values), **common
        )
    if kind is int and NoneType in get_args(hint) and field.default is not None:
        return _Option([name], type=_IntOrNone(), **common)
    return _Option([name], type=_ByteCount() if field.name.endswith("_bytes") else kind, **common)


def _flat(lists: tuple[list[int], ...]) -> list[int] | None:
    return [number for numbers in lists for number in numbers] or None


_REPEATED: dict[Any, tuple[Any, Callable[[Any], object]]] = {
    list[int]: (IdList(), _flat),
    list[str]: (str, lambda values: list(values) or None),
    dict[int, float]: (_Bias(), lambda values: dict(values) or None),
}


def _help(field: dataclasses.Field[Any], overrides: Mapping[str, object]) -> str:
    """The field's help and its default. A default of None is explained by the help itself."""
    text = str(field.metadata["help"])
    default = overrides.get(field.name, field.default)
    if default is None or default is dataclasses.MISSING:
        return text
    if isinstance(default, bool):
        default = "on" if default else "off"
    return f"{text}; default: {default}"
