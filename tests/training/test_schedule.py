"""The learning rate of the papers' schedules at the steps that define them."""

import pytest

from polyserve_training.config import ScheduleRecipe
from polyserve_training.schedule import learning_rate


def rates(num_steps: int = 100, **fields: object) -> list[float]:
    schedule = ScheduleRecipe(**fields)
    return [learning_rate(step, peak=1.0, num_steps=num_steps, schedule=schedule) for step in range(num_steps)]


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_warm_up_is_a_straight_line_from_where_it_is_told_to_begin(kind):
    found = rates(kind=kind, warmup_steps=4, warmup_from=0.2)
    assert found[:4] == pytest.approx([0.4, 0.6, 0.8, 1.0])


def test_a_cosine_ends_at_its_floor_and_is_halfway_in_the_middle():
    found = rates(101, kind="cosine", final=0.1)
    assert (found[0], found[50], found[100]) == pytest.approx((1.0, 0.55, 0.1))
    assert found == sorted(found, reverse=True)


def test_a_cosine_that_ends_early_stays_level():
    found = rates(kind="cosine", final=0.1, decay_steps=60)
    assert found[59:] == pytest.approx([0.1] * 41)
    assert found[58] > 0.1


def test_wsd_is_level_until_its_last_steps_and_falls_by_the_root():
    found = rates(kind="wsd", warmup_steps=10, final=0.0, decay_steps=16)
    assert found[9:84] == [1.0] * 75
    assert (found[87], found[99]) == pytest.approx((0.5, 0.0))


def test_wsd_decays_over_a_tenth_where_nothing_is_said():
    found = rates(kind="wsd")
    assert found[89] == 1.0 > found[90]
