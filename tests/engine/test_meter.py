"""Measured and predicted times of steps."""

import pytest

from polyserve.engine.meter import StepMeter
from polyserve.engine.step import Chunk, Step
from support.tiny_decoder import tiny_config


def step(*chunks: tuple[int, int]) -> Step:
    return Step([Chunk(number, start, n, 0, [], samples=True) for number, (start, n) in enumerate(chunks)])


@pytest.fixture
def meter() -> StepMeter:
    return StepMeter(tiny_config(), kv_bytes_per_token=1000.0)


def test_steps_tokens_and_seconds_add_up(meter: StepMeter) -> None:
    meter.note(step((0, 5), (3, 1)), 0.2)
    meter.note(step((5, 1)), 0.1)
    assert (meter.num_steps, meter.num_tokens, meter.seconds) == (2, 7, pytest.approx(0.3))


def test_the_same_step_in_twice_the_time_is_predicted_as_before(meter: StepMeter) -> None:
    meter.note(step((100, 1)), 0.1)
    meter.note(step((100, 1)), 0.2)
    assert meter.predicted_seconds == pytest.approx(0.2)


def test_a_step_is_never_predicted_to_take_longer_than_it_did(meter: StepMeter) -> None:
    for start, n, seconds in ((0, 64, 0.5), (64, 1, 0.01), (65, 1, 0.02), (500, 1, 0.03), (0, 512, 3.0)):
        before = meter.predicted_seconds
        meter.note(step((start, n)), seconds)
        assert meter.predicted_seconds - before <= seconds * (1 + 1e-9)


def test_a_longer_context_and_more_tokens_predict_more(meter: StepMeter) -> None:
    meter.note(step((10, 1)), 1e-6)  # the best rates, by far
    predicted = []
    for chunks in ([(10, 1)], [(10_000, 1)], [(10_000, 1)] * 3, [(0, 10_000)]):
        before = meter.predicted_seconds
        meter.note(step(*chunks), 1.0)
        predicted.append(meter.predicted_seconds - before)
    assert predicted == sorted(predicted)
    assert predicted[0] < predicted[1] < predicted[2]
