"""Scores over HTTP and gRPC."""

import grpc
import httpx
import pytest

from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import FakeLLM, logprob_of
from support.live_server import LiveServer

PATH = "/v1/score"
INPUTS = [{"context": "a ", "continuation": "bc"}, {"continuation": "é"}]


def test_a_continuation_is_scored_after_its_context_and_a_whole_text_by_itself(
    client: httpx.Client, llm: FakeLLM
) -> None:
    answer = client.post(PATH, json={"inputs": INPUTS}).json()
    first, second = answer["data"]
    assert first["token_ids"] == list(b" bc")  # the space at the context's end goes with what follows
    assert second["token_ids"] == list("é".encode())
    assert first["token_logprobs"] == [logprob_of(token_id, place) for place, token_id in enumerate(b" bc", start=2)]
    assert first["logprob"] == pytest.approx(sum(first["token_logprobs"]))
    assert (first["num_bytes"], second["num_bytes"]) == (3, 2)
    assert answer["usage"]["prompt_tokens"] == 5 + 3


def test_both_protocols_give_the_same(client: httpx.Client, server: LiveServer) -> None:
    over_http = client.post(PATH, json={"inputs": INPUTS}).json()
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = PolyServeStub(channel).Score(pb.ScoreRequest(inputs=[pb.ScoreInput(**one) for one in INPUTS]))
    assert answer.prompt_tokens == over_http["usage"]["prompt_tokens"]
    for ours, theirs in zip(answer.scores, over_http["data"], strict=True):
        assert list(ours.token_ids) == theirs["token_ids"]
        assert list(ours.token_logprobs) == theirs["token_logprobs"]
        for name in ("logprob", "is_greedy", "perplexity", "bits_per_byte", "num_bytes"):
            assert getattr(ours, name) == theirs[name]


@pytest.mark.parametrize(("body", "field"), [
    ({"inputs": []}, "inputs"),
    ({"inputs": [{"context": "a"}]}, "inputs[0].continuation"),
    ({"inputs": [{"continuation": ""}]}, "continuation"),
    ({"inputs": [{"continuation": "a", "weight": 1}]}, "inputs[0].weight"),
    ({"inputs": [{"continuation": "x" * 500}]}, "inputs"),
])  # fmt: skip
def test_what_cannot_be_scored_is_refused_by_name(client: httpx.Client, body: dict, field: str) -> None:
    response = client.post(PATH, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
