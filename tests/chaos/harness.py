"""A real server on loopback, traffic whose every answer is known, and eyes on what the server holds.

Client    one HTTP/1.1 connection a request, by hand: light enough to offer more than a server can do, and it can leave
          at any moment
traffic   seeded requests of all kinds; `answers` asks for them undisturbed, and later answers must equal those
Watched   the processes: gauges of `/metrics`, engine, memory, descriptors, threads
Figures are printed for whoever runs `make chaos`; nothing here judges a time.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import psutil

from polyserve.service.core_process import NAME
from polyserve.service.fork_server import FORK_SERVER
from support.served_model import Served

NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 10}
TEXT = "Die Hauptstadt von 北京 is the river и la casa de una 猫 that was once upon time"


@dataclass
class Answer:
    """What came of one request. `bits` is what must not depend on anything but the request."""

    status: int = 0
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    error: dict[str, object] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    asked: float = 0.0  # monotonic seconds, as all times here
    times: list[float] = field(default_factory=list)  # of the events
    ended: float = 0.0

    @property
    def bits(self) -> tuple[object, ...]:
        return self.token_ids, self.logprobs, self.finish, self.error

    def first_after(self, when: float) -> float:
        """The time of the first event after that; 0 if none came."""
        return next((event for event in self.times if event > when), 0.0)

    def take(self, event: dict[str, object]) -> None:
        """Note one event of a stream."""
        self.times.append(time.monotonic())
        if "error" in event:
            self.error = event["error"]  # type: ignore[assignment]
            return
        for choice in event["choices"]:  # type: ignore[attr-defined]
            index = choice["index"]
            self.token_ids.setdefault(index, []).extend(choice.get("token_ids") or ())
            if choice.get("logprobs"):
                self.logprobs.setdefault(index, []).extend(choice["logprobs"]["token_logprobs"])
            if choice["finish_reason"]:
                self.finish[index] = choice["finish_reason"]


class Client:
    """Asks one server for completions."""

    def __init__(self, served: Served) -> None:
        host, _, port = served.url.removeprefix("http://").partition(":")
        self.host, self.port = host, int(port)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Closed at the end without a word, whatever is under way."""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=2**22)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def ask(
        self,
        body: dict[str, object],
        *,
        timeout_ms: int | None = None,
        leave_after: int = -1,
        answer: Answer | None = None,
    ) -> Answer:
        """A completion, streamed or not; leave_after: close the connection after so many events.

        answer: what it is written into, for who looks at it while it comes."""
        answer = answer or Answer()
        answer.asked = time.monotonic()
        async with self.connection() as (reader, writer):
            writer.write(self.head(body, timeout_ms=timeout_ms))
            await self._read_head(reader, answer)
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                await self._read_events(reader, answer, leave_after)
            else:
                data = await reader.readexactly(int(answer.headers["content-length"]))
                answer.take(json.loads(data))
                answer.complete = answer.status == 200
        answer.ended = time.monotonic()
        return answer

    def head(self, body: dict[str, object], *, timeout_ms: int | None = None) -> bytes:
        """The request's bytes."""
        deadline = f"X-Request-Timeout-Ms: {timeout_ms}\r\n" if timeout_ms is not None else ""
        return self._post("/v1/completions", body, deadline)

    def _post(self, path: str, body: dict[str, object], header: str = "") -> bytes:
        data = json.dumps(body).encode()
        return (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n{header}"
            f"Content-Length: {len(data)}\r\n\r\n"
        ).encode() + data

    async def token_ids(self, text: str) -> list[int]:
        """A text's tokens."""
        _, data = await self._exchange(self._post("/tokenize", {"prompt": text}))
        ids: list[int] = json.loads(data)["tokens"]
        return ids

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text."""
        status, data = await self._exchange(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
        return status, data.decode()

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of an answer whose length is told."""
        answer = Answer()
        async with self.connection() as (reader, writer):
            writer.write(request)
            await self._read_head(reader, answer)
            return answer.status, await reader.readexactly(int(answer.headers["content-length"]))

    async def _read_head(self, reader: asyncio.StreamReader, answer: Answer) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        answer.status = int(lines[0].split()[1])
        answer.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}

    async def _read_events(self, reader: asyncio.StreamReader, answer: Answer, leave_after: int) -> None:
        """Chunked server-sent events."""
        while size := int(await reader.readline(), 16):
            for line in (await reader.readexactly(size)).split(b"\n\n"):
                data = line.removeprefix(b"data: ")
                if data == b"[DONE]":
                    answer.complete = True
                elif data:
                    answer.take(json.loads(data))
                if len(answer.times) == leave_after:
                    return
            await reader.readexactly(2)
        await reader.readexactly(2)


class PoolingClient(Client):
    """Asks again on connections whose answers were read to their end, as clients do that ask for much."""

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Kept after the block, unless it was left by an error."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # the server closes those that are idle for long
                break
            writer.transport.abort()
        else:
            reader, writer = await asyncio.open_connection(self.host, self.port, limit=2**22)
        try:
            yield reader, writer
        except BaseException:
            writer.transport.abort()
            raise
        self._idle.append((reader, writer))

    def close(self) -> None:
        """Close those that are kept."""
        for _, writer in self._idle:
            writer.transport.abort()


def traffic(
    count: int, *, seed: int = 0, max_tokens: tuple[int, int] = (20, 60), grammars: bool = False
) -> list[dict[str, object]]:
    """Greedy and seeded streams, several choices, penalties, filters, log-probabilities, stop strings, grammars."""
    draw = random.Random(seed)
    kinds: list[dict[str, object]] = [
        {"temperature": 0},
        {"temperature": 1.0, "logprobs": 2},
        {"temperature": 0.8, "top_p": 0.9, "n": 3},
        {"temperature": 1.2, "top_k": 40, "frequency_penalty": 0.5, "presence_penalty": 0.3},
        {"temperature": 0, "repetition_penalty": 1.2, "logprobs": 1, "min_tokens": min(10, max_tokens[0])},
        {"temperature": 1.0, "stop": ["e", "的"], "n": 2},
    ]
    if grammars:
        kinds.append({"temperature": 1.0, "guided_json": NUMBERS, "ignore_eos": False})
    return [
        {
            "prompt": " ".join(draw.choices(TEXT.split(), k=draw.randint(3, 60))),
            "max_tokens": draw.randint(*max_tokens),
            "seed": draw.randrange(2**31),
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            **kinds[number % len(kinds)],
        }
        for number in range(count)
    ]


async def answers(client: Client, bodies: Sequence[dict[str, object]], *, at_a_time: int = 32) -> list[Answer]:
    """Ask for all of them."""
    gate = asyncio.Semaphore(at_a_time)

    async def ask(body: dict[str, object]) -> Answer:
        async with gate:
            return await client.ask(body)

    return await asyncio.gather(*map(ask, bodies))


class Watched:
    """A server's processes and gauges."""

    def __init__(self, served: Served, *, client: Client | None = None) -> None:
        self.client = client or Client(served)
        self.front = psutil.Process(served.process.pid)

    @property
    def engine(self) -> psutil.Process | None:
        """The engine process, if there is one at the moment."""
        with suppress(psutil.Error):
            return next((child for child in self.front.children() if child.name() == NAME), None)
        return None

    async def gauges(self) -> dict[str, float]:
        """Every sample of `/metrics` without labels."""
        _, text = await self.client.get("/metrics")
        lines = (line.split() for line in text.splitlines() if not line.startswith("#") and "{" not in line)
        return {name: float(value) for name, value in lines}

    async def idle(self, *, within_s: float = 10.0) -> float:
        """Wait until nothing runs, waits or holds a block. Returns how long that took."""
        began = time.monotonic()
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio")
        while True:
            gauges = await self.gauges()
            held = {name: gauges[f"polyserve_{name}"] for name in names}
            if not any(held.values()):
                return time.monotonic() - began
            assert time.monotonic() - began < within_s, f"still held: {held}"
            await asyncio.sleep(0.01)

    async def closed(self, num_descriptors: int) -> None:
        """Wait until the front has no more open than that."""
        for _ in range(100):
            if self.handles()[0] <= num_descriptors:
                return
            await asyncio.sleep(0.05)
        assert self.handles()[0] <= num_descriptors

    async def ready(self) -> bool:
        with suppress(OSError, asyncio.IncompleteReadError):
            return (await self.client.get("/readyz"))[0] == 200
        return False

    def anonymous_bytes(self) -> int:
        """Memory of front, engine and helpers that is theirs alone and backed by no file. A fork server may import."""
        children = self.front.children()
        counted = (child for child in children if FORK_SERVER not in child.cmdline() or child.name() == NAME)
        return sum(_anonymous_bytes(process.pid) for process in (self.front, *counted))

    def processor_seconds(self) -> dict[str, float]:
        """What each process has computed so far; `client` is this one."""
        processes = {"front": self.front, "engine": self.engine, "client": psutil.Process()}
        times = {name: process.cpu_times() for name, process in processes.items() if process is not None}
        return {name: spent.user + spent.system for name, spent in times.items()}

    def handles(self) -> tuple[int, int]:
        """Open descriptors and threads of the front."""
        return self.front.num_fds(), self.front.num_threads()


def _anonymous_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(what: str, **figures: object) -> None:
    """One line for whoever runs the long forms (`pytest -s`)."""
    shown = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    sys.stdout.write(f"\n{what}: {json.dumps(shown)}\n")
