"""Shares of languages are those of the papers' formulas."""

import pytest

from polyserve_training.data.languages import smoothed, unimax

SIZES = {"en": 8000, "de": 1000, "sw": 10}


def test_smoothing_follows_the_power_law():
    shares = smoothed(SIZES, alpha=0.3)
    assert shares["en"] / shares["de"] == pytest.approx(8**0.3)
    assert shares["de"] / shares["sw"] == pytest.approx(100**0.3)
    assert sum(shares.values()) == pytest.approx(1)


def test_smoothing_with_one_keeps_proportions_and_with_zero_makes_all_equal():
    assert smoothed(SIZES, alpha=1) == pytest.approx({name: size / 9010 for name, size in SIZES.items()})
    assert smoothed(SIZES, alpha=0) == pytest.approx(dict.fromkeys(SIZES, 1 / 3))


def test_unimax_fills_the_small_to_their_caps_and_divides_the_rest_evenly():
    assert unimax(SIZES, budget=4040, max_epochs=4) == pytest.approx(
        {"sw": 40 / 4040, "de": 2000 / 4040, "en": 2000 / 4040}
    )


def test_unimax_without_caps_that_matter_is_even():
    assert unimax(SIZES, budget=30, max_epochs=1) == pytest.approx(dict.fromkeys(SIZES, 1 / 3))


def test_unimax_asks_for_less_than_the_budget_where_all_are_capped():
    assert unimax(SIZES, budget=10**6, max_epochs=1) == pytest.approx(
        {name: size / 9010 for name, size in SIZES.items()}
    )
