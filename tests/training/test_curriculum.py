"""A stage's groups become shares of streams: languages by the group's rule, sources by their tokens."""

import pytest

from polyserve.errors import TrainingError
from polyserve_training.config import Group, Stage
from polyserve_training.curriculum import shares_of

SIZES = {"web/en": 900, "web/de": 90, "web/sw": 10, "wiki/en": 100, "wiki/de": 10}


def shares(*groups: Group, budget: float = 100) -> dict[str, float]:
    return shares_of(Stage(name="s", steps=1, mixture=groups), SIZES, budget=budget)


def test_one_group_of_everything_keeps_proportions():
    assert shares(Group()) == pytest.approx({name: size / 1110 for name, size in SIZES.items()})


def test_a_language_has_its_share_whatever_its_sources_and_they_divide_it_by_size():
    found = shares(Group(streams=("*/en",), share=40), Group(share=60))
    assert found["web/en"] + found["wiki/en"] == pytest.approx(0.4)
    assert found["web/en"] / found["wiki/en"] == pytest.approx(9)
    assert sum(found.values()) == pytest.approx(1)


def test_smoothing_is_among_the_languages_of_a_group():
    found = shares(Group(sampling="smoothed", alpha=0.5))
    by_language = {x: sum(v for name, v in found.items() if name.endswith(x)) for x in ("en", "de", "sw")}
    assert by_language["en"] / by_language["de"] == pytest.approx((1000 / 100) ** 0.5)
    assert by_language["de"] / by_language["sw"] == pytest.approx((100 / 10) ** 0.5)


def test_unimax_caps_epochs_of_what_the_group_reads_of_the_stage():
    found = shares(Group(streams=("web/en",), share=1), Group(sampling="unimax", max_epochs=2), budget=400)
    # the second group reads 200 tokens: sw is capped at 20; en (wiki) and de have 90 each
    assert found["web/sw"] * 400 == pytest.approx(20)
    assert found["wiki/en"] * 400 == pytest.approx(90)
    assert (found["web/de"] + found["wiki/de"]) * 400 == pytest.approx(90)


def test_a_group_without_a_share_takes_its_streams_away():
    found = shares(Group(streams=("*/en",), share=0), Group())
    assert set(found) == {"web/de", "web/sw", "wiki/de"}


def test_a_stream_that_no_group_names_is_not_read():
    assert set(shares(Group(streams=("wiki/*",)))) == {"wiki/en", "wiki/de"}


def test_a_language_without_data_is_named():
    with pytest.raises(TrainingError, match=r"no data for \*/fr in stage s; there is web/en, web/de"):
        shares(Group(streams=("*/en", "*/fr")))
