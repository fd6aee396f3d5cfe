"""A request ends when its time is over: the client's, or the server's own where that is shorter."""

import grpc
import httpx
import pytest

from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import FakeLLM
from support.live_server import LiveServer, events_of, live_server, wait_until

BODIES = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
}
SOON = {"X-Request-Timeout-Ms": "100"}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_byte_it_is_status_504(client: httpx.Client, llm: FakeLLM, path: str, stream: bool) -> None:
    llm.hold(0)
    response = client.post(path, json={**BODIES[path], "stream": stream}, headers=SOON)
    assert (response.status_code, response.json()["error"]["type"]) == (504, "timeout_error")
    assert not llm.live


@pytest.mark.parametrize("path", BODIES)
def test_in_a_stream_it_is_the_last_event(client: httpx.Client, llm: FakeLLM, path: str) -> None:
    llm.hold(3)
    with client.stream("POST", path, json={**BODIES[path], "stream": True}, headers=SOON) as response:
        events = events_of(response)
    assert response.status_code == 200
    assert events[-1]["error"]["type"] == "timeout_error"


def test_an_answer_in_time_is_whole(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={"prompt": "hi"}, headers={"X-Request-Timeout-Ms": "60000"})
    assert response.json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "9" * 13, "²"])
def test_a_time_that_is_none_is_refused_by_name(client: httpx.Client, value: str) -> None:
    response = client.post("/v1/completions", json={"prompt": "hi"}, headers={b"X-Request-Timeout-Ms": value.encode()})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "X-Request-Timeout-Ms")


def test_grpcs_deadline_aborts_the_request(server: LiveServer, llm: FakeLLM) -> None:
    llm.hold(0)
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as error:
        list(PolyServeStub(channel).Generate(pb.GenerateRequest(text="hi"), timeout=0.2))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: not llm.live)


def test_the_servers_own_limit_holds_for_whoever_asks_for_more() -> None:
    with live_server(request_timeout_s=0.1) as server:
        server.llm.hold(0)
        for headers in ({}, {"X-Request-Timeout-Ms": "60000"}):
            response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi"}, headers=headers)
            assert response.status_code == 504
        with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as error:
            list(PolyServeStub(channel).Generate(pb.GenerateRequest(text="hi")))
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
