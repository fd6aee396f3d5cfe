"""The fuzzers' targets on inputs from a seed, so that they are right themselves when `make fuzz` runs them."""

import random

import pytest
from fuzz.targets import TARGETS

FOUND = [  # what fuzzing has found, and what was then repaired
    ("safetensors_header", bytes.fromhex("3b0222000b8870" + "88" * 19 + "308888888888ffffffff882a0001008804")),
    ("safetensors_header", bytes.fromhex("0b000300000e4f")),
]


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_once_is_repaired(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_promises_hold_for_random_bytes(name: str) -> None:
    rng = random.Random(name)
    for _ in range(300):
        TARGETS[name](rng.randbytes(rng.randrange(120)))


def test_a_promise_that_is_broken_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyserve.output.StopMatcher.flush", lambda _: b"")
    with pytest.raises(AssertionError):
        TARGETS["stop_strings"](bytes([1, 1, 1, 97, 98, 97, 0]))
