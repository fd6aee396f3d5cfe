"""A server that has as much to do as it may take in says so at once, and when to come again."""

import threading
from collections.abc import Iterator

import grpc
import httpx
import pytest

from polyserve.api.http.room import PATHS
from polyserve.service.admission import Admission, AdmissionConfig
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import MAX_MODEL_LEN, VOCAB_SIZE, FakeLLM
from support.live_server import LiveServer, live_server, wait_until


def small_llm() -> FakeLLM:
    llm = FakeLLM()
    config = AdmissionConfig(max_queued_requests=2)
    llm.admission = Admission(config, max_num_seqs=64, vocab_size=VOCAB_SIZE, max_model_len=MAX_MODEL_LEN)
    return llm


@pytest.fixture
def full() -> Iterator[LiveServer]:
    """A server in which as many choices wait as may."""
    with live_server(small_llm) as server:
        server.llm.hold(0)
        body = {"prompt": ["a", "b"]}
        waiting = threading.Thread(target=httpx.post, args=(f"{server.url}/v1/completions",), kwargs={"json": body})
        waiting.start()
        wait_until(lambda: len(server.llm.live) == 2)
        yield server
        server.release()
        waiting.join()


@pytest.mark.parametrize("stream", [True, False])
def test_over_http_it_is_status_429_with_retry_after(full: LiveServer, stream: bool) -> None:
    message = {"role": "user", "content": "hi"}
    for path, body in (("completions", {"prompt": "hi"}), ("chat/completions", {"messages": [message]})):
        response = httpx.post(f"{full.url}/v1/{path}", json={**body, "stream": stream})
        assert (response.status_code, response.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", sorted(PATHS))
def test_no_body_is_read_for_it(full: LiveServer, path: str) -> None:
    refused = full.frontend.metrics.refused.labels("overload")._value
    before = refused.get()
    response = httpx.post(f"{full.url}{path}", content=b"{" + b" " * 2**20)  # no JSON
    assert response.status_code == 429
    assert refused.get() == before + 1


def test_over_grpc_it_is_resource_exhausted_with_retry_after(full: LiveServer) -> None:
    with grpc.insecure_channel(full.grpc_address) as channel, pytest.raises(grpc.RpcError) as error:
        list(PolyServeStub(channel).Generate(pb.GenerateRequest(text="hi")))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("retry-after", "1") in [(entry.key, entry.value) for entry in error.value.trailing_metadata()]


def test_what_asks_for_no_tokens_is_answered_all_the_same(full: LiveServer) -> None:
    assert httpx.post(f"{full.url}/tokenize", json={"prompt": "hi"}).status_code == 200
    assert httpx.get(f"{full.url}/readyz").status_code == 200


def test_of_a_request_with_several_prompts_all_have_a_place_or_none() -> None:
    with live_server(small_llm) as server:
        response = httpx.post(f"{server.url}/v1/completions", json={"prompt": ["a", "b", "c"]})
        assert response.status_code == 429
        assert not server.llm.seen
        assert server.llm.admission.num_queued == 0
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": ["a", "b"]}).status_code == 200
