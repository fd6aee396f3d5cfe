"""Clients that send too much, too deep or too slowly, or do not read: refused in one shape, while others are served."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import httpx
import pytest

from polyserve.api.limits import Limits
from polyserve.api.protection import Protection
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import MAX_MODEL_LEN
from support.live_server import LiveServer, live_server, wait_until

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LIMITS = Limits(
    max_connections=20,
    max_body_bytes=2**20,
    header_timeout_s=0.3,
    body_timeout_s=0.3,
    write_timeout_s=0.3,
    max_prompt_bytes_per_token=10,
    max_stop_strings=3,
    max_choices=4,
)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(protection=Protection(limits=LIMITS)) as running:
        yield running


@contextmanager
def connected(server: LiveServer) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as opened:
        yield opened


def answer_to(server: LiveServer, *parts: bytes) -> tuple[int, dict]:
    """Status and body of what comes back, until the server closes the connection."""
    with connected(server) as opened:
        received = b""
        try:
            for part in parts:
                opened.sendall(part)
            while data := opened.recv(65536):
                received += data
        except ConnectionError:  # it closed before it read everything
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]


def completion(server: LiveServer, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi", "max_tokens": 2, **body})


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"X: " + b"a" * 40_000 + b"\r\n\r\n",
        HEAD + b"X: " + b"a" * 2**20,  # a line without an end
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 2**20,
        HEAD + b"".join(b"X%d: 1\r\n" % i for i in range(101)) + b"\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",  # a trailer
    ],
    ids=["long header", "endless header", "long path", "endless path", "many headers", "trailer"],
)
def test_a_head_that_is_too_large_is_a_431(server: LiveServer, head: bytes) -> None:
    status, error = answer_to(server, head)
    assert (status, error["type"]) == (431, "invalid_request_error")


def test_as_many_headers_as_are_allowed_are_read(server: LiveServer) -> None:
    headers = {f"x-{i}": "1" for i in range(90)}
    assert httpx.get(f"{server.url}/health", headers=headers).status_code == 200


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" * 20, HEAD + b"A\x00: b\r\n\r\n"])
def test_what_is_not_http_is_a_400(server: LiveServer, data: bytes) -> None:
    assert answer_to(server, data)[0] == 400


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length : 5\r\n",
    ],
)
def test_a_length_that_can_be_read_in_two_ways_is_a_400(server: LiveServer, headers: bytes) -> None:
    assert answer_to(server, HEAD + headers + b"\r\nhello")[0] == 400


def test_a_body_in_chunks_of_a_byte_is_counted_with_its_framing(server: LiveServer) -> None:
    chunks = b"1\r\nx\r\n" * (LIMITS.max_body_bytes // 2)
    status, _ = answer_to(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunks)
    assert status == 413


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"GET /", "headers"),
        (HEAD, "headers"),
        (HEAD + b"Content-Length: 5\r\n\r\nab", "body"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na", "body"),
    ],
)
def test_a_request_that_does_not_go_on_is_a_408(server: LiveServer, data: bytes, part: str) -> None:
    status, error = answer_to(server, data)
    assert status == 408
    assert f"the request's {part} did not arrive" in error["message"]


def test_a_client_that_says_nothing_is_closed(server: LiveServer) -> None:
    with connected(server) as opened:
        assert opened.recv(100) == b""


def test_a_client_that_drips_its_headers_is_not_given_more_time(server: LiveServer) -> None:
    def drip(opened: socket.socket) -> None:
        for _ in range(100):
            opened.sendall(b"X: 1\r\n")
            time.sleep(0.05)

    with connected(server) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            drip(opened)


def test_one_connection_too_many_is_a_503(server: LiveServer) -> None:
    with httpx.Client() as first:
        first.get(f"{server.url}/health")
        opened = [socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) for _ in range(19)]
        assert answer_to(server)[0] == 503
        for one in opened:
            one.close()
    wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 200)


def test_a_client_that_does_not_read_is_cut_off_and_its_request_ended(server: LiveServer) -> None:
    server.llm.reset()
    body = json.dumps(
        {"prompt": ["a"] * 200, "n": 4, "logprobs": 20, "max_tokens": 390, "stream": True, "ignore_eos": True}
    )
    with connected(server) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.sendall(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body.encode()))
        wait_until(lambda: bool(server.llm.live))
        wait_until(lambda: not server.llm.live)
        assert server.llm.aborted


def test_a_client_that_does_not_read_over_grpc_has_its_request_ended(server: LiveServer) -> None:
    server.llm.reset()
    params = pb.SamplingParams(n=4, logprobs=20, max_tokens=390, ignore_eos=True)
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
    with grpc.insecure_channel(server.grpc_address, options=options) as channel:
        calls = [PolyServeStub(channel).Generate(pb.GenerateRequest(text="a", params=params)) for _ in range(2)]
        wait_until(lambda: bool(server.llm.live))
        wait_until(lambda: not server.llm.live)
        assert server.llm.aborted
        for call in calls:
            call.cancel()


def test_a_body_that_is_too_deep_is_a_400(server: LiveServer) -> None:
    deep: object = "x"
    for _ in range(100):
        deep = [deep]
    error = completion(server, user=deep)
    assert error.status_code == 400
    assert "more than 64 lists and objects inside each other" in error.json()["error"]["message"]


def test_brackets_beside_each_other_are_not_deep(server: LiveServer) -> None:
    assert completion(server, prompt=["[" * 100] * 100, max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", ["a", "b", "c", "d"]),
        ("stop", ["a" * 300]),
        ("n", 5),
        ("stop_token_ids", list(range(129))),
        ("prompt", "x" * (10 * MAX_MODEL_LEN + 1)),
    ],
)
def test_a_list_that_is_too_long_is_the_same_error_over_both_protocols(
    server: LiveServer, field: str, value: object
) -> None:
    response = completion(server, **{field: value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    request = (
        pb.GenerateRequest(text=str(value))
        if field == "prompt"
        else pb.GenerateRequest(text="hi", params=pb.SamplingParams(**{field: value}))
    )
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as failure:
        list(PolyServeStub(channel).Generate(request))
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert failure.value.details() == response.json()["error"]["message"]


def test_a_message_and_metadata_that_are_too_large_are_refused_over_grpc(server: LiveServer) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = PolyServeStub(channel)
        for text, metadata in (("x" * (LIMITS.max_body_bytes + 1), []), ("x", [("a", "x" * 40_000)])):
            with pytest.raises(grpc.RpcError) as failure:
                list(stub.Generate(pb.GenerateRequest(text=text), metadata=metadata))
            assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.GetModel(pb.GetModelRequest()).model == "fake"


def test_a_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_connections must be more than 0"):
        Limits(max_connections=0)
