"""One streamed request, timed: over OpenAI's HTTP API of any server, or over PolyServe's gRPC service.

Times are of this process's monotonic clock, from the moment before the request is sent. A token has come when a part of
the answer that is not empty has; where a part holds several tokens, their times are one.
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import httpx

from polyserve_benchmarks.serve.load import Asked, Load
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub

PATIENCE_S = 6 * 3600.0


@dataclass(slots=True)
class Timed:
    """What became of a request. Seconds."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft: float = 0.0
    itl: list[float] = field(default_factory=list)
    latency: float = 0.0
    text: str = ""
    error: str = ""

    @property
    def tpot(self) -> float:
        """Of the tokens after the first; 0 if there are none."""
        return (self.latency - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


class Client(Protocol):
    async def model(self) -> str:
        """The name of a model that the server serves."""

    async def ask(self, asked: Asked, model: str) -> Timed: ...


class _Clock:
    """Marks when parts of an answer come."""

    def __init__(self) -> None:
        self.timed = Timed()
        self._began = self._last = time.perf_counter()

    def part(self, text: str) -> None:
        now = time.perf_counter()
        if not self.timed.ttft:
            self.timed.ttft = now - self._began
        else:
            self.timed.itl.append(now - self._last)
        self.timed.text += text
        self._last, self.timed.latency = now, now - self._began


class HttpClient:
    """`openai` and `openai-chat`."""

    def __init__(self, load: Load, http: httpx.AsyncClient) -> None:
        self._load = load
        self._http = http
        self._is_chat = load.backend == "openai-chat"
        self._extra: dict[str, Any] = json.loads(load.extra_body or "{}")

    async def model(self) -> str:
        response = (await self._http.get("/v1/models")).raise_for_status()
        return str(response.json()["data"][0]["id"])

    async def ask(self, asked: Asked, model: str) -> Timed:
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": asked.output_len,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self._load.ignore_eos else {}),
            **self._extra,
        }
        content = (
            {"messages": [{"role": "user", "content": asked.prompt}]} if self._is_chat else {"prompt": asked.prompt}
        )
        path = "/v1/chat/completions" if self._is_chat else "/v1/completions"
        clock = _Clock()
        try:
            async with self._http.stream("POST", path, json=content | body) as response:
                if response.status_code != 200:
                    clock.timed.error = (await response.aread()).decode(errors="replace")
                    return clock.timed
                async for event in _events(response):
                    self._take(event, clock)
        except httpx.HTTPError as error:
            clock.timed.error = f"{type(error).__name__}: {error}"
        return clock.timed

    def _take(self, event: dict[str, Any], clock: _Clock) -> None:
        if "error" in event:
            clock.timed.error = str(event["error"])
        if event.get("usage"):
            clock.timed.prompt_tokens = event["usage"]["prompt_tokens"]
            clock.timed.output_tokens = event["usage"]["completion_tokens"]
        for choice in event.get("choices", ()):
            text = (choice["delta"].get("content") if self._is_chat else choice["text"]) or ""
            if text:
                clock.part(text)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each event of a stream."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


class GrpcClient:
    """`grpc`. Extra fields are SamplingParams."""

    def __init__(self, load: Load, channel: grpc.aio.Channel) -> None:
        self._load = load
        self._stub = PolyServeStub(channel)  # type: ignore[no-untyped-call]  # generated code
        self._extra: dict[str, Any] = json.loads(load.extra_body or "{}")

    async def model(self) -> str:
        return str((await self._stub.GetModel(pb.GetModelRequest())).model)

    async def ask(self, asked: Asked, model: str) -> Timed:
        params = pb.SamplingParams(
            max_tokens=asked.output_len, temperature=0, ignore_eos=self._load.ignore_eos, **self._extra
        )
        clock = _Clock()
        try:
            async for response in self._stub.Generate(
                pb.GenerateRequest(model=model, text=asked.prompt, params=params)
            ):
                kind = response.WhichOneof("event")
                if kind == "delta" and response.delta.token_ids:
                    clock.part(response.delta.text)
                elif kind == "usage":
                    clock.timed.prompt_tokens = response.usage.prompt_tokens
                    clock.timed.output_tokens = response.usage.completion_tokens
        except grpc.aio.AioRpcError as error:
            clock.timed.error = f"{error.code().name}: {error.details()}"
        return clock.timed


@asynccontextmanager
async def connected(load: Load) -> AsyncIterator[Client]:
    """A client of the load's server."""
    if load.backend == "grpc":
        async with grpc.aio.insecure_channel(load.base_url.removeprefix("http://")) as channel:
            yield GrpcClient(load, channel)
    else:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=load.base_url, timeout=PATIENCE_S, limits=limits) as http:
            yield HttpClient(load, http)
