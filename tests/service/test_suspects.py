"""Bisection without processes: a life computes everyone who goes on in one step, and ends if a culprit is there."""

from hypothesis import given
from hypothesis import strategies as st

from polyserve.request import Request, SequenceOutput
from polyserve.sampling_params import SamplingParams
from polyserve.service.journal import Journal
from polyserve.service.suspects import judge, release

MAX_LIVES = 200


def journal_of(num_requests: int) -> Journal:
    journal = Journal()
    for number in range(num_requests):
        journal.open(Request(f"r{number}", [1], SamplingParams()))
    return journal


def given_up(num_requests: int, culprits: set[str]) -> tuple[list[str], int]:
    """The requests that are given up until the engine lives, and how often it died."""
    journal, found = journal_of(num_requests), []
    for num_deaths in range(MAX_LIVES):
        computing = {entry.request.request_id for entry in journal if not entry.held}
        while not computing & culprits:
            for request_id in computing:
                journal.record(SequenceOutput(request_id, 0, [1]))
            following = release(journal)
            if not following:
                return found, num_deaths
            computing |= {entry.request.request_id for entry in following}
        culprit, _ = judge(journal, computing)
        if culprit is not None:
            found.append(culprit.request.request_id)
            journal.close(found[-1])
    raise AssertionError("the engine never lives")


@given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=4))
def test_all_culprits_are_given_up_and_nobody_else(num_requests: int, numbers: set[int]) -> None:
    culprits = {f"r{number}" for number in numbers if number < num_requests}
    found, _ = given_up(num_requests, culprits)
    assert set(found) == culprits


def test_a_young_culprit_among_31_costs_three_deaths() -> None:
    assert given_up(32, {"r31"}) == (["r31"], 3)


def test_an_old_culprit_among_31_costs_no_more_than_halving_does() -> None:
    assert given_up(32, {"r0"}) == (["r0"], 7)


def test_a_request_that_was_not_in_the_step_is_not_suspected() -> None:
    journal = journal_of(3)
    for _ in range(2):
        culprit, _ = judge(journal, {"r1"})
    assert culprit is journal.get("r1")


def test_a_token_clears_a_request() -> None:
    journal = journal_of(1)
    for _ in range(5):
        assert judge(journal, {"r0"}) == (None, False)
        journal.record(SequenceOutput("r0", 0, [1]))
