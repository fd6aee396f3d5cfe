"""Which row a sample is: exact shares in every block, every row once an epoch, and nothing but the number decides."""

from collections import Counter
from itertools import pairwise

import pytest

from polyserve.errors import TrainingError
from polyserve_training.data.mixture import Mixture, Permutation, StagePlan, apportion

ROWS = {"a": 7, "b": 50, "c": 1000}
STAGES = [
    StagePlan("one", 103, {"a": 2, "b": 5, "c": 13}),
    StagePlan("two", 60, {"b": 12, "c": 3}),
    StagePlan("three", 200, {"a": 10, "b": 5, "c": 5}),
]


def mixture(seed: int = 0) -> Mixture:
    return Mixture(STAGES, ROWS, seed=seed)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000])
def test_a_permutation_has_every_place_once(size):
    order = Permutation(size, "key")
    assert sorted(order.of(place) for place in range(size)) == list(range(size))


def test_permutations_of_different_keys_differ():
    orders = {tuple(Permutation(50, key).of(place) for place in range(50)) for key in "abcdef"}
    assert len(orders) == 6


def test_every_whole_block_has_its_exact_counts():
    plan = mixture()
    first = 0
    for stage in STAGES:
        size = sum(stage.counts.values())
        for block in range(stage.num_samples // size):
            samples = [plan.locate(first + block * size + place) for place in range(size)]
            assert Counter(sample.stream for sample in samples) == stage.counts
        first += stage.num_samples


def test_every_row_of_a_stream_comes_once_in_each_epoch_over_all_stages():
    plan = mixture()
    for stream, size in ROWS.items():
        samples = [s for s in map(plan.locate, range(363)) if s.stream == stream]
        assert len({(s.epoch, s.row) for s in samples}) == len(samples)
        assert Counter(s.epoch for s in samples) == Counter(place // size for place in range(len(samples)))


def test_blocks_and_epochs_have_orders_of_their_own():
    plan = mixture()
    blocks = [tuple(plan.locate(20 * block + place).stream for place in range(20)) for block in range(5)]
    assert len(set(blocks)) == 5
    rows = [s.row for s in map(plan.locate, range(363)) if s.stream == "a"]
    epochs = [tuple(rows[start : start + 7]) for start in range(0, len(rows) - 6, 7)]
    assert len(set(epochs)) == len(epochs) > 5


def test_a_sample_is_the_same_in_whatever_order_samples_are_asked_for():
    forwards = [mixture().locate(index) for index in range(363)]
    plan = mixture()
    assert [plan.locate(index) for index in reversed(range(363))] == forwards[::-1]


def test_another_seed_is_another_order():
    assert [mixture(1).locate(i) for i in range(40)] != [mixture(2).locate(i) for i in range(40)]


def test_a_later_stage_does_not_change_what_came_before():
    assert [Mixture(STAGES[:1], ROWS, seed=0).locate(i) for i in range(103)] == [
        mixture().locate(i) for i in range(103)
    ]


def test_drawn_counts_what_was_drawn():
    plan = mixture()
    ends = [0, 103, 163, 363]
    for number in range(3):
        counted = Counter(plan.locate(index).stream for index in range(ends[number + 1]))
        assert plan.drawn(number) == counted
    assert all(low < high for low, high in pairwise(ends))


def test_what_is_over_goes_to_the_largest_remainders():
    assert apportion({"a": 0.5, "b": 0.26, "c": 0.24}, 10, stage="s") == {"a": 5, "b": 3, "c": 2}
    assert apportion({"a": 1, "b": 0, "c": 3}, 4, stage="s") == {"a": 1, "c": 3}


def test_a_stream_that_would_never_come_is_named():
    with pytest.raises(TrainingError, match=r"b has less than one row in a block of 10 in stage s: raise block to 1"):
        apportion({"a": 0.99, "b": 0.01}, 10, stage="s")
