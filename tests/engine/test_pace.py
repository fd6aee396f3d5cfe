"""A machine whose steps take `fixed + each * tokens` seconds, and the budget that the pace comes to."""

import pytest

from polyserve.engine.pace import Pace


def settled(pace: Pace, *, fixed: float, each: float, num_steps: int = 40) -> float:
    """How long the last of some steps takes."""
    seconds = 0.0
    for _ in range(num_steps):
        seconds = fixed + each * pace.num_tokens
        pace.learn(pace.num_tokens, seconds)
    return seconds


@pytest.mark.parametrize("each", [0.0001, 0.001, 0.01])
def test_steps_come_to_take_what_they_may(each: float) -> None:
    assert settled(Pace(0.1, 10**6), fixed=0.02, each=each) == pytest.approx(0.1, rel=0.1)


def test_a_fast_machine_gets_the_whole_budget() -> None:
    pace = Pace(0.1, 512)
    settled(pace, fixed=0.001, each=0.00001)
    assert pace.num_tokens == 512


def test_when_the_machine_becomes_slower_so_do_the_steps_become_smaller() -> None:
    pace = Pace(0.1, 10**6)
    settled(pace, fixed=0.0, each=0.0001)
    assert settled(pace, fixed=0.0, each=0.001, num_steps=5) == pytest.approx(0.1, rel=0.1)


def test_small_steps_say_nothing_about_large_ones() -> None:
    pace = Pace(0.1, 512)
    before = pace.num_tokens
    pace.learn(1, 0.01)
    assert pace.num_tokens == before
