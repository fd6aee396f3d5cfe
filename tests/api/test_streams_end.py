"""How an answer ends when it does not end well: the client leaves, the request fails, the engine dies."""

import socket

import httpx
import openai
import pytest

from polyserve.errors import EngineDead, InternalError
from support.fake_llm import FakeLLM
from support.live_server import LiveServer, events_of, live_server, wait_until

BODIES = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
}


def leave(server: LiveServer, path: str, body: dict, *, after: bytes) -> None:
    """Send a request by hand, read up to `after`, and close the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    request = httpx.Request("POST", server.url + path, json=body)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items() if name != "host")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"\r\n" + request.content)
        seen = b""
        while after not in seen:
            seen += connection.recv(65536)


@pytest.mark.parametrize("path", BODIES)
def test_leaving_a_stream_aborts_its_request(server: LiveServer, llm: FakeLLM, path: str) -> None:
    llm.hold(3)
    leave(server, path, {**BODIES[path], "stream": True}, after=b"data: ")
    wait_until(lambda: len(llm.aborted) == 1)
    assert not llm.live


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [True, False])
def test_leaving_before_the_first_token_aborts_the_request(
    server: LiveServer, llm: FakeLLM, path: str, stream: bool
) -> None:
    llm.hold(0)
    host, port = server.url.removeprefix("http://").split(":")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"http://{host}:{port}{path}", json={**BODIES[path], "stream": stream}, timeout=0.2)
    wait_until(lambda: len(llm.aborted) == 1)
    assert not llm.live


def test_leaving_aborts_every_prompt_of_the_request(server: LiveServer, llm: FakeLLM) -> None:
    llm.hold(3)
    leave(server, "/v1/completions", {"prompt": ["a", "b", "c"], "stream": True}, after=b"data: ")
    wait_until(lambda: len(llm.aborted) == 3)
    assert not llm.live


@pytest.mark.parametrize("path", BODIES)
def test_an_error_in_mid_stream_is_the_last_event(client: httpx.Client, llm: FakeLLM, path: str) -> None:
    llm.fail(3, InternalError("the step failed"))
    with client.stream("POST", path, json={**BODIES[path], "stream": True}) as response:
        *chunks, last = events_of(response)
    assert last == {"error": {"message": "the step failed", "type": "internal_error", "param": None, "code": None}}
    assert all("choices" in chunk for chunk in chunks)


def test_an_unexpected_fault_in_mid_stream_tells_nothing(client: httpx.Client, llm: FakeLLM) -> None:
    llm.fail(3, RuntimeError("secret path /home/x"))
    with client.stream("POST", "/v1/completions", json={"prompt": "hi", "stream": True}) as response:
        *_, last = events_of(response)
    assert last["error"]["message"] == "the server met an internal error"


def test_an_error_before_the_first_event_has_its_own_status(client: httpx.Client, llm: FakeLLM) -> None:
    llm.fail(0, EngineDead("the engine process ended"))
    response = client.post("/v1/completions", json={"prompt": "hi", "stream": True})
    assert (response.status_code, response.json()["error"]["type"]) == (503, "service_unavailable_error")


def test_one_failing_prompt_ends_the_others_of_its_request(client: httpx.Client, llm: FakeLLM) -> None:
    llm.fail(2, InternalError("the step failed"))
    response = client.post("/v1/completions", json={"prompt": ["a", "b"]})
    assert response.status_code == 500
    assert not llm.live


def test_openais_client_raises_the_error_of_a_broken_stream(server: LiveServer, llm: FakeLLM) -> None:
    llm.fail(3, InternalError("the step failed"))
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError, match="the step failed"):
        list(client.completions.create(model="fake", prompt="hi", stream=True))


def test_when_the_engine_dies_every_request_ends_and_the_server_returns_1() -> None:
    with live_server() as server:
        server.llm.hold(2)
        body = {"prompt": ["a", "b"], "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            wait_until(lambda: len(server.llm.live) == 2)
            server.die()
            *_, last = events_of(response)
        assert "the engine process ended" in last["error"]["message"]
        server.join()
        assert server.exit_code == 1


def test_a_dead_engine_makes_the_server_unhealthy(server: LiveServer, client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    server.frontend.llm.dead.set()
    try:
        response = client.get("/health")
    finally:
        server.frontend.llm.dead.clear()
    assert (response.status_code, response.json()["error"]["type"]) == (503, "service_unavailable_error")


def test_a_server_that_is_told_to_stop_lets_a_request_finish() -> None:
    with live_server() as server:
        body = {"prompt": "hi", "stream": True}
        server.llm.hold(2)
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            wait_until(lambda: bool(server.llm.live))
            server.ask_to_stop()
            server.release()
            *_, last = events_of(response)
        assert last == "[DONE]"
        server.join()
        assert server.exit_code == 0


def test_what_does_not_finish_in_time_ends_with_an_error() -> None:
    with live_server() as server:
        server.llm.hold(2)
        body = {"prompt": "hi", "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            wait_until(lambda: bool(server.llm.live))
            server.ask_to_stop()
            *_, last = events_of(response)
        assert "error" in last
        server.join()
        assert server.exit_code == 0


def test_a_server_that_is_told_to_stop_returns_0() -> None:
    with live_server() as server:
        httpx.get(f"{server.url}/health")
    assert server.exit_code == 0
