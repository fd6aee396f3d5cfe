"""What the server says of itself: alive, ready, or about to end, over HTTP and gRPC."""

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import FakeLLM
from support.live_server import LiveServer, events_of, live_server, wait_until

SERVICES = ["", "polyserve.v1.PolyServe"]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def grpc_status(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_a_server_that_answers_is_alive_and_ready(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("service", SERVICES)
def test_while_the_engine_is_started_again_the_server_is_alive_but_not_ready(
    server: LiveServer, client: httpx.Client, service: str
) -> None:
    wait_until(lambda: grpc_status(server.grpc_address, service) == SERVING)
    server.llm.progressing = False
    try:
        assert client.get("/livez").status_code == 200
        for path in ("/readyz", "/health"):
            response = client.get(path)
            assert (response.status_code, response.json()["error"]["type"]) == (503, "service_unavailable_error")
        wait_until(lambda: grpc_status(server.grpc_address, service) == NOT_SERVING)
    finally:
        server.llm.progressing = True
    wait_until(lambda: grpc_status(server.grpc_address, service) == SERVING)


def test_requests_are_taken_in_while_the_engine_is_started_again(client: httpx.Client, llm: FakeLLM) -> None:
    llm.progressing = False
    try:
        assert client.post("/v1/completions", json={"prompt": "hi"}).status_code == 200
    finally:
        llm.progressing = True


def test_a_server_that_drains_is_alive_not_ready_and_refuses_what_is_new() -> None:
    with live_server(drain_timeout_s=60.0) as server:
        server.llm.hold(2)
        with httpx.stream("POST", f"{server.url}/v1/completions", json={"prompt": "a", "stream": True}) as response:
            wait_until(lambda: bool(server.llm.live))
            server.ask_to_stop()
            wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
            assert httpx.get(f"{server.url}/livez").status_code == 200
            assert {grpc_status(server.grpc_address, service) for service in SERVICES} == {NOT_SERVING}
            refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "b"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as error:
                list(PolyServeStub(channel).Generate(pb.GenerateRequest(text="b")))
            assert error.value.code() == grpc.StatusCode.UNAVAILABLE
            assert ("retry-after", "1") in [(entry.key, entry.value) for entry in error.value.trailing_metadata()]
            server.release()
            assert events_of(response)[-1] == "[DONE]"
        server.join()
        assert server.exit_code == 0


def test_whoever_asks_twice_does_not_wait_for_what_runs() -> None:
    with live_server(drain_timeout_s=60.0) as server:
        server.llm.hold(2)
        with httpx.stream("POST", f"{server.url}/v1/completions", json={"prompt": "a", "stream": True}) as response:
            wait_until(lambda: bool(server.llm.live))
            server.ask_to_stop()
            server.ask_to_stop()
            assert "error" in events_of(response)[-1]
        server.join()
        assert server.exit_code == 0
