"""A dataclass's fields become flags; its own check names the flag."""

from dataclasses import dataclass, fields

import click
import pytest
from click.testing import CliRunner, Result

from polyserve.cli.options import Flags, SectionedCommand, flag_name, flags_of
from polyserve.config import EngineConfig, ServerConfig, option
from polyserve.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Oven:
    model: str = option("small", "which oven")
    heat: int = option(180, "degrees")
    fan_speed: float = option(0.5, "share of the fastest")
    lamp: bool = option(True, "light inside")
    size_bytes: int | None = option(None, "size")
    mode: str = option("grill", "what it does", choices=("grill", "bake"))
    pauses: list[int] = option([], "minutes")
    labels: list[str] = option([], "words")
    weights: dict[int, float] = option({}, "pairs")
    timer: int | None = option(16, "minutes; none: for ever")

    def __post_init__(self) -> None:
        if not 0 < self.heat <= 250:
            raise ValueError(f"heat must be at most 250, got {self.heat}")
        if not 0.0 <= self.fan_speed <= 1.0:
            raise ValueError(f"with this heat, fan_speed must be at most 1, got {self.fan_speed}")


def run(arguments: list[str], *, standalone_mode: bool = True, **options: object) -> Result:
    @click.command(cls=SectionedCommand)
    @flags_of(Oven, "oven", argument="model", section="Oven", **options)  # type: ignore[arg-type]
    def bake(oven: Flags[Oven]) -> Oven:
        """Bake."""
        return oven.build()

    return CliRunner().invoke(bake, arguments, standalone_mode=standalone_mode)


def baked(arguments: list[str], **options: object) -> object:
    return run(arguments, standalone_mode=False, **options).return_value


def test_without_flags_the_dataclass_has_its_own_defaults():
    assert baked([]) == Oven()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["large"], Oven(model="large")),
        (["--heat", "200"], Oven(heat=200)),
        (["--fan-speed", "0.25"], Oven(fan_speed=0.25)),
        (["--no-lamp"], Oven(lamp=False)),
        (["--lamp"], Oven(lamp=True)),
        (["--mode", "bake"], Oven(mode="bake")),
        (["--pauses", "1,2", "--pauses", "3"], Oven(pauses=[1, 2, 3])),
        (["--labels", "a,b", "--labels", "c"], Oven(labels=["a,b", "c"])),
        (["--weights", "4:-1.5", "--weights", "5:2"], Oven(weights={4: -1.5, 5: 2.0})),
        (["--timer", "none"], Oven(timer=None)),
        (["--timer", "3"], Oven(timer=3)),
        (["--size-bytes", "2GiB"], Oven(size_bytes=2 * 2**30)),
        (["--size-bytes", "512 mib"], Oven(size_bytes=512 * 2**20)),
        (["--size-bytes", "7"], Oven(size_bytes=7)),
    ],
)
def test_a_flag_sets_its_field(arguments, expected):
    assert baked(arguments) == expected


def test_a_command_can_have_defaults_of_its_own_that_a_flag_still_overrides():
    assert baked([], defaults={"timer": None}) == Oven(timer=None)
    assert baked(["--timer", "5"], defaults={"timer": None}) == Oven(timer=5)


def test_a_field_can_go_without_a_flag():
    assert "--heat" not in run(["--help"], skip=("heat",)).output
    assert run(["--heat", "3"], skip=("heat",)).exit_code == 2
    assert "--mode" not in run(["--help"], only=("model", "heat")).output


def test_help_shows_every_flag_under_its_heading_with_help_default_and_choices():
    shown = run(["--help"]).output
    heading, listed = shown.split("\nOven:\n")
    assert "[MODEL]" in heading
    assert "which oven; default: small" in heading
    assert "--lamp / --no-lamp" in listed
    assert "light inside; default: on" in listed
    assert "[grill|bake]" in listed
    assert "degrees; default: 180" in listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heat", "300"], "--heat must be at most 250, got 300"),
        (["--fan-speed", "2"], "with this heat, --fan-speed must be at most 1, got 2.0"),
        (["--heat", "hot"], "Invalid value for '--heat'"),
        (["--mode", "fry"], "Invalid value for '--mode': 'fry' is not one of 'grill', 'bake'"),
        (["--size-bytes", "2GB"], "Invalid value for '--size-bytes': '2GB' is not a number of bytes such as"),
        (["--pauses", "1,x"], "Invalid value for '--pauses': '1,x' is not a list of whole numbers"),
        (["--weights", "x"], "Invalid value for '--weights': 'x' is not a token id and a number such as 42:-5"),
        (["--timer", "never"], "Invalid value for '--timer'"),
    ],
)
def test_a_bad_value_is_a_usage_error_that_names_the_flag(arguments, message):
    result = run(arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_check_of_sampling_parameters_names_the_flag_too():
    flags = Flags(SamplingParams, {"stop": [""], "top_k": 5}, {})
    with pytest.raises(click.UsageError, match=r"^--stop: a stop string has 1 to 1024 characters, got 0$"):
        flags.build()
    with pytest.raises(click.UsageError, match=r"^--min-tokens must be at most --max-tokens \(16\), got 20$"):
        Flags(SamplingParams, {"min_tokens": 20}, {}).build()


def test_flags_without_effect_are_refused_by_name_when_they_are_given():
    Flags(Oven, {}, {}).refuse("with --url")
    with pytest.raises(click.UsageError, match=r"^--heat has no effect with --url$"):
        Flags(Oven, {"heat": 3}, {}).refuse("with --url")


@pytest.mark.parametrize("owner", [EngineConfig, ServerConfig, SamplingParams])
def test_every_field_of_the_real_dataclasses_has_a_flag_with_help(owner):
    @click.command()
    @flags_of(owner, "flags")
    def command(flags: Flags[object]) -> None:
        """Nothing."""

    helps = {param.opts[0]: param.help for param in command.params if isinstance(param, click.Option)}
    for field in fields(owner):
        assert helps[flag_name(field.name)], f"{field.name} has no help"
