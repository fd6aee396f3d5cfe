"""x-request-id in and out of both protocols, and log lines that have it, but no prompt and no key."""

import logging
import re

import grpc
import httpx
import pytest

from polyserve.api.keys import KeyRing, new_key
from polyserve.api.protection import Protection
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import FakeLLM
from support.live_server import LiveServer, live_server

CANARY = "zyzzyva-of-the-prompt"


def id_of(response: httpx.Response) -> str:
    (value,) = response.headers.get_list("x-request-id")
    return value


def test_a_clients_id_comes_back(client: httpx.Client) -> None:
    for path in ("/health", "/v1/models", "/nothing"):
        assert id_of(client.get(path, headers={"x-request-id": "trace-1/2:a@b"})) == "trace-1/2:a@b"


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "\xe9", "a\tb", "{}"])
def test_another_id_is_replaced(client: httpx.Client, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given.encode("latin-1")}
    assert re.fullmatch("req-[0-9a-f]{32}", id_of(client.get("/health", headers=headers)))


def test_a_stream_and_an_error_have_an_id_too(client: httpx.Client, llm: FakeLLM) -> None:
    headers = {"x-request-id": "mine"}
    body = {"prompt": "hi", "max_tokens": 2, "stream": True}
    assert id_of(client.post("/v1/completions", json=body, headers=headers)) == "mine"
    llm.fail(0, RuntimeError("no"))
    response = client.post("/v1/completions", json={"prompt": "hi"}, headers=headers)
    assert (response.status_code, id_of(response)) == (500, "mine")


@pytest.mark.usefixtures("llm")
def test_grpc_carries_it_in_metadata(server: LiveServer) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = PolyServeStub(channel).Generate(pb.GenerateRequest(text="hi"), metadata=[("x-request-id", "mine")])
        list(call)
        assert ("x-request-id", "mine") in [(item.key, item.value) for item in call.trailing_metadata()]
        with pytest.raises(grpc.RpcError) as failure:
            list(PolyServeStub(channel).Generate(pb.GenerateRequest(), metadata=[("x-request-id", "mine")]))
        assert ("x-request-id", "mine") in [(item.key, item.value) for item in failure.value.trailing_metadata()]


def test_no_prompt_and_no_key_is_ever_logged(caplog: pytest.LogCaptureFixture) -> None:
    key, entry = new_key("alice")
    caplog.set_level(logging.DEBUG, "polyserve")
    with live_server(protection=Protection(KeyRing([entry]))) as server:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{server.url}/v1/completions"
        for body in ({"prompt": CANARY}, {"prompt": CANARY, "n": -1}, {"prompt": [CANARY, 1]}, {"prompt": {CANARY: 1}}):
            httpx.post(url, json=body, headers=headers)
        server.llm.fail(1, RuntimeError("no"))
        httpx.post(url, json={"prompt": CANARY}, headers=headers)
        httpx.post(url, json={"prompt": CANARY}, headers={"Authorization": f"Bearer {key}x"})
    text = "\n".join(logging.Formatter().format(record) for record in caplog.records)
    assert "POST /v1/completions: 500" in text
    assert "POST /v1/completions: 401" in text
    assert "for alice" in text
    assert CANARY not in text
    assert key not in text


def test_errors_tell_nothing_of_the_insides(client: httpx.Client, llm: FakeLLM) -> None:
    inner = ("Traceback", "/polyserve/", "/site-packages/", " object at 0x", ".py")
    responses = []
    for value in (None, -1, 2**70, 1e308, "\x00", [], {}, {"a": [{}]}, "../" * 40):
        for field in ("prompt", "n", "seed", "stop", "logit_bias", "stream", "model", "temperature"):
            responses.append(client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1, field: value}))
        responses.append(client.get(f"/{value}".replace("\x00", "%00")))
    llm.fail(0, RuntimeError("see /polyserve/api.py at 0x7f00"))
    responses.append(client.post("/v1/completions", json={"prompt": "x"}))
    for response in responses:
        assert not any(word in response.text for word in inner), response.text
