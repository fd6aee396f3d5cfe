"""Who comes in and who goes next, without servers: tickets are reserved, started and ended by hand."""

from functools import partial

import pytest

from polyserve.errors import InvalidRequest, Overloaded
from polyserve.sampling_params import SamplingParams
from polyserve.service.admission import Admission, AdmissionConfig, Ticket, workspace_bytes


class Desk:
    """An Admission in front of an engine of `room` choices, and what it sent there, in order."""

    def __init__(self, *, room: int = 4, **config: object) -> None:
        self.admission = Admission(
            AdmissionConfig(**config),  # type: ignore[arg-type]
            max_num_seqs=room,
            vocab_size=100,
            max_model_len=1000,
        )
        self.sent: list[str] = []
        self.tickets: dict[str, Ticket] = {}

    def enter(
        self, name: str, *, tenant: str | None = None, prompt_len: int = 10, num_characters: int = 10, **params: int
    ) -> None:
        ticket = self.tickets[name] = self.admission.reserve(
            prompt_len,
            SamplingParams(**params),
            tenant=tenant,
            num_characters=num_characters,  # type: ignore[arg-type]
        )
        self.admission.enter(ticket, partial(self.sent.append, name))

    def end(self, name: str) -> None:
        self.admission.close(self.tickets[name])


def test_what_there_is_room_for_goes_to_the_engine_at_once_and_a_few_ahead_of_their_time() -> None:
    desk = Desk(room=4)
    for number in range(8):
        desk.enter(f"r{number}")
    assert desk.sent == ["r0", "r1", "r2", "r3", "r4"]
    desk.end("r2")
    assert desk.sent[-1] == "r5"


def test_a_choice_that_ends_makes_room() -> None:
    desk = Desk(room=4)
    desk.enter("many", n=5)
    desk.enter("next")
    assert desk.sent == ["many"]
    desk.admission.choice_ended(desk.tickets["many"], 3)
    assert desk.sent == ["many", "next"]


def test_the_queue_is_bounded_in_choices_until_their_first_token() -> None:
    desk = Desk(max_queued_requests=3)
    desk.enter("a", n=2)
    desk.enter("b")
    with pytest.raises(Overloaded):
        desk.admission.check_room()
    with pytest.raises(Overloaded, match="3 choices wait"):
        desk.enter("c")
    desk.admission.took(desk.tickets["a"])
    desk.enter("c")
    assert desk.admission.num_refused == 2


def test_the_queue_is_bounded_in_tokens() -> None:
    desk = Desk(max_queued_tokens=100)
    desk.enter("a", prompt_len=60)
    with pytest.raises(Overloaded):
        desk.enter("b", prompt_len=41)
    desk.enter("c", prompt_len=40)


def test_memory_beside_the_cache_is_bounded_and_given_back() -> None:
    params = {"logprobs": 20, "max_tokens": 500}
    needed = workspace_bytes(10, SamplingParams(**params), vocab_size=100, max_model_len=1000)  # type: ignore[arg-type]
    assert needed > 500 * 21 * 300
    desk = Desk(max_request_memory_bytes=2 * needed)
    desk.enter("a", **params)
    desk.enter("b", **params)
    with pytest.raises(Overloaded):
        desk.enter("c", **params)
    desk.end("a")
    desk.enter("c", **params)


@pytest.mark.parametrize("bound", ["max_queued_requests", "max_queued_tokens", "max_request_memory_bytes"])
def test_what_can_never_have_a_place_is_no_overload(bound: str) -> None:
    desk = Desk(**{bound: 1})
    with pytest.raises(InvalidRequest, match="this server has room for 1"):
        desk.enter("a", n=2)


def test_the_lower_priority_goes_first_and_equals_in_the_order_they_came() -> None:
    desk = Desk(room=1)
    desk.enter("running", n=2)
    for name, priority in (("a", 1), ("b", 0), ("c", -1), ("d", 0)):
        desk.enter(name, priority=priority)
    desk.end("running")
    for _ in range(4):
        desk.end(desk.sent[-1])
    assert desk.sent[1:] == ["c", "b", "d", "a"]


@pytest.mark.parametrize(("share_by", "expected"), [("tokens", 20), ("characters", 15)])
def test_tenants_get_equally_much_of_what_they_share(share_by: str, expected: int) -> None:
    """Both always have requests that wait; one's text takes half as many tokens, and so half as much work."""
    desk = Desk(room=1, share_by=share_by, max_queued_tokens=10**6)
    for number in range(60):
        desk.enter(f"dense{number}", tenant="dense", prompt_len=10, num_characters=60)
        desk.enter(f"sparse{number}", tenant="sparse", prompt_len=20, num_characters=60)
    for number in range(30):
        desk.end(desk.sent[number])
    num_dense = sum(name.startswith("dense") for name in desk.sent[:30])
    assert abs(num_dense - expected) <= 1


def test_what_was_answered_counts_as_well() -> None:
    desk = Desk(room=1)
    for number in range(4):
        desk.enter(f"a{number}", tenant="a")
    desk.enter("b", tenant="b")
    desk.admission.charge(desk.tickets["a0"], num_tokens=100, num_characters=0)
    desk.end("a0")
    assert desk.sent == ["a0", "a1", "b"]


def test_a_tenant_that_was_away_claims_nothing_for_that_time() -> None:
    desk = Desk(room=1)
    desk.enter("old", tenant="late")
    desk.end("old")
    for number in range(100):
        desk.enter(f"a{number}", tenant="a")
        desk.end(f"a{number}")
    for number in range(10):
        desk.enter(f"x{number}", tenant="a")
        desk.enter(f"y{number}", tenant="late")
    start = len(desk.sent) - 2
    for index in range(start, start + 12):
        desk.end(desk.sent[index])
    names = [name[0] for name in desk.sent[start : start + 12]]
    assert abs(names.count("x") - names.count("y")) <= 2


def test_who_leaves_the_queue_is_never_sent() -> None:
    desk = Desk(room=1)
    desk.enter("running", n=2)
    desk.enter("left")
    desk.enter("stays")
    desk.end("left")
    desk.end("running")
    assert desk.sent == ["running", "stays"]


def test_everything_is_given_back_at_the_end() -> None:
    desk = Desk(room=2)
    for number in range(6):
        desk.enter(f"r{number}", n=2)
    for name in list(desk.tickets):
        desk.end(name)
        desk.end(name)
    admission = desk.admission
    assert (admission.num_queued, admission.num_queued_tokens, admission.num_bytes) == (0, 0, 0)
    desk.sent.clear()
    for number in range(3):
        desk.enter(f"s{number}")
    assert len(desk.sent) == 3


def test_when_to_try_again_follows_from_the_rate_at_which_the_queue_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    desk = Desk(max_queued_requests=40)
    for number in range(40):
        desk.enter(f"r{number}")
    for number in range(10):  # two a second
        now += 0.5
        desk.admission.took(desk.tickets[f"r{number}"])
    for number in range(10):
        desk.enter(f"s{number}")
    now += 0.5
    with pytest.raises(Overloaded) as error:
        desk.enter("late")
    assert error.value.retry_after_s == 20
