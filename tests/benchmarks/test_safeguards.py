"""What safeguards cost is measured between two servers that answer alike, one of which has none."""

import json

import httpx
import pytest

from polyserve_benchmarks.safeguards import BARE, run
from polyserve_benchmarks.server import POLYSERVE, started
from support.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", "llama"))


def test_both_servers_are_measured_in_turn(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(model, num_streams=2, num_words=4, num_tokens=3, rounds=2)
    assert {name: len(rounds) for name, rounds in document["rounds"].items()} == {"whole": 2, "bare": 2}
    assert document["throughput_ratio"] > 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document


def test_the_bare_server_answers_alike_and_counts_nothing(model: str) -> None:
    answers, counted = [], []
    for command in (POLYSERVE, BARE):
        with started(model, polyserve=command) as url:
            body = {"prompt": "one two", "max_tokens": 5, "temperature": 0, "return_token_ids": True}
            answers.append(httpx.post(f"{url}/v1/completions", json=body).json()["choices"])
            counted.append("polyserve_generation_tokens_total 5.0" in httpx.get(f"{url}/metrics").text)
    assert answers[0] == answers[1]
    assert answers[0][0]["token_ids"]
    assert counted == [True, False]
