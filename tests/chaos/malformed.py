"""Requests that no server should be asked, from a seed: bytes for HTTP connections, and for gRPC calls."""

import json
import random
from collections.abc import Iterator

from polyserve_proto.v1 import polyserve_pb2 as pb

PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
METHODS = ("Generate", "Chat", "Tokenize", "Detokenize", "GetModel", "Nothing")
VALUES: tuple[object, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, 1e308, -0.5, float("nan"), float("inf"), "", "1", "\ud800",
    "x" * 5000, [], {}, [[]], [None], {"a": {}}, [2**40], [-1], ["a", 1], {"-1": 1}, {"5": 1e9}, ["x" * 600] * 70,
    [10**6] * 1000,
)  # fmt: skip
FIELDS = (
    "prompt", "messages", "tokens", "max_tokens", "n", "temperature", "top_p", "top_k", "seed", "stop", "logprobs",
    "prompt_logprobs", "logit_bias", "stop_token_ids", "allowed_token_ids", "stream", "stream_options", "echo",
    "priority", "model", "best_of", "response_format", "tools", "min_tokens", "repetition_penalty", "nonsense",
    "__class__",
)  # fmt: skip


def http_requests(count: int, *, seed: int) -> Iterator[bytes]:
    """What is written on a connection, malformed in its JSON, its fields or its protocol."""
    draw = random.Random(seed)
    for _ in range(count):
        body = _body(draw)
        path = draw.choice(PATHS)
        kind = draw.randrange(12)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        if kind == 0:
            yield bytes(draw.randrange(256) for _ in range(draw.randrange(1, 400))) + b"\r\n\r\n"
        elif kind == 1:
            yield (head + f"Content-Length: {len(body) + 50}\r\n\r\n").encode() + body  # and then nothing
        elif kind == 2:
            yield (head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n").encode() + body
        elif kind == 3:
            yield (
                head + f"Content-Length: {draw.choice(['-1', '1e3', '99999999999999999999'])}\r\n\r\n"
            ).encode() + body
        else:
            yield (head + f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def _body(draw: random.Random) -> bytes:
    kind = draw.randrange(8)
    if kind == 0:
        return draw.choice(
            [b"", b"{", b"[]", b"null", b'"', b"{}" * 9, b"[" * 5000, b'{"prompt":' * 200, b"\xff\xfe{}"]
        )
    body: dict[str, object] = {"prompt": "hi", "max_tokens": 2}
    if kind < 4:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    for _ in range(draw.randrange(1, 4)):
        body[draw.choice(FIELDS)] = draw.choice(VALUES)
    data = json.dumps(body, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
    if kind == 7:  # cut, or with a byte that is another
        position = draw.randrange(len(data))
        data = (
            data[:position]
            if draw.random() < 0.5
            else data[:position] + bytes([draw.randrange(256)]) + data[position + 1 :]
        )
    return data


def grpc_calls(count: int, *, seed: int) -> Iterator[tuple[str, bytes]]:
    """Method and message: random bytes, cut messages, and messages whose fields are out of range."""
    draw = random.Random(seed)
    for _ in range(count):
        params = pb.SamplingParams(
            n=draw.choice([0, 1, 2**31]),
            max_tokens=draw.choice([0, 1, 2**32 - 1]),
            temperature=draw.choice([-1.0, float("nan"), 1e308]),
            top_k=draw.choice([-5, 1]),
            stop=["\x00" * draw.randrange(2000)] * draw.randrange(100),
            stop_token_ids=[draw.randrange(2**32)],
        )
        message = draw.choice(
            [
                pb.GenerateRequest(text="hi", params=params),
                pb.GenerateRequest(token_ids=pb.TokenIds(ids=[draw.randrange(2**32)] * draw.randrange(9))),
                pb.ChatRequest(messages=[pb.ChatMessage(role=draw.randrange(-2, 99), content="x")], params=params),
                pb.DetokenizeRequest(token_ids=[draw.randrange(2**32)]),
            ]
        ).SerializeToString()
        kind = draw.randrange(3)
        if kind == 0:
            message = bytes(draw.randrange(256) for _ in range(draw.randrange(200)))
        elif kind == 1:
            message = message[: draw.randrange(len(message) + 1)]
        yield f"/polyserve.v1.PolyServe/{draw.choice(METHODS)}", message
