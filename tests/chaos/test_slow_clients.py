"""Clients that do not read, never finish what they send, or send far too much: those who behave do not notice.

Measured twice on one server: beside streams that are read, and beside the same streams unread, requests whose heads
arrive a byte at a time, and heads and bodies beyond every limit.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from chaos.harness import Answer, Client, Watched, answers, percentile, show, traffic

from support.served_model import served

NUM_STREAMS = 8  # read or not
NUM_HEALTHY = 4  # at a time
LIMITS = ("--header-timeout-s", "3", "--body-timeout-s", "3", "--write-timeout-s", "2")
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BOMBS = {
    "long header": HEAD + b"X: " + b"x" * 2**20,
    "many headers": HEAD + b"".join(b"X-%d: x\r\n" % number for number in range(20_000)),
    "long body": HEAD + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 2**20,
    "small chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000,
}
LONG_ANSWER = {"prompt": "hi", "max_tokens": 400, "logprobs": 20, "stream": True, "ignore_eos": True, "seed": 0}


class Hostile:
    """What they saw of the server."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.num_cut = 0  # streams that nobody read
        self.statuses: dict[str, set[int]] = {}  # of what was sent too slowly, or too large; 0: closed without a word

    async def read_slowly(self) -> None:
        """Ask for much and read half as fast as a client must, until the server closes the connection."""
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least that the system gives
            await loop.sock_connect(connection, (self.client.host, self.client.port))
            await loop.sock_sendall(connection, self.client.head(LONG_ANSWER))
            with suppress(ConnectionError):
                while await loop.sock_recv(connection, 512):
                    await asyncio.sleep(1.0)
            self.num_cut += 1

    async def ask_slowly(self) -> None:
        """A head, a byte at a time."""

        async def send(writer: asyncio.StreamWriter) -> None:
            for byte in HEAD:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.5)

        await self._send("slow head", send)

    async def ask_too_much(self, name: str) -> None:
        async def send(writer: asyncio.StreamWriter) -> None:
            writer.write(BOMBS[name])

        await self._send(name, send)
        await asyncio.sleep(0.5)

    async def _send(self, name: str, send: Any) -> None:
        async with self.client.connection() as (reader, writer):
            sending = asyncio.create_task(send(writer))
            status = 0
            with suppress(ConnectionError):  # closed before everything was read
                line = await reader.readline()
                status = int(line.split()[1]) if line else 0
            sending.cancel()
            self.statuses.setdefault(name, set()).add(status)


@asynccontextmanager
async def going_on(*works: Any) -> AsyncIterator[None]:
    """Each over and over, for as long as the block runs."""

    async def repeat(work: Any) -> None:
        while True:
            await work()

    tasks = [asyncio.create_task(repeat(work)) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)


async def ask_all(client: Client, bodies: list[dict[str, object]], rounds: int) -> list[Answer]:
    return await answers(client, bodies * rounds, at_a_time=NUM_HEALTHY)


def latency(done: list[Answer], share: float) -> float:
    return percentile((answer.ended - answer.asked for answer in done), share)


@pytest.mark.parametrize(
    ("rounds", "num_heads"), [(3, 50), pytest.param(20, 500, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_slow_and_hostile_clients_hold_nobody_up(model: Path, rounds: int, num_heads: int) -> None:
    async def test() -> None:
        with served(model, *LIMITS, "--log-level", "error") as server:
            watched = Watched(server)
            client, hostile = watched.client, Hostile(watched.client)
            bodies = traffic(24, max_tokens=(10, 20))
            golden = await answers(client, bodies)
            num_descriptors, _ = watched.handles()

            async with going_on(*[lambda: client.ask(LONG_ANSWER)] * NUM_STREAMS):
                normal = await ask_all(client, bodies, rounds)
            bombs = [lambda name=name: hostile.ask_too_much(name) for name in BOMBS]
            works = [hostile.read_slowly] * NUM_STREAMS + [hostile.ask_slowly] * num_heads + bombs
            async with going_on(*works):
                disturbed = await ask_all(client, bodies, rounds)
                while not (hostile.num_cut and len(hostile.statuses) == len(BOMBS) + 1):
                    await asyncio.sleep(0.1)

            for number, answer in enumerate(normal + disturbed):
                assert answer.bits == golden[number % len(golden)].bits
            assert hostile.statuses.pop("slow head") <= {0, 408}
            for name, statuses in hostile.statuses.items():
                assert statuses <= {0, 400, 408, 413, 431}, name
            await watched.idle()
            show(
                "slow clients",
                answers=len(disturbed),
                unread_streams_cut=hostile.num_cut,
                normal_p50_s=latency(normal, 0.5),
                normal_p99_s=latency(normal, 0.99),
                disturbed_p50_s=latency(disturbed, 0.5),
                disturbed_p99_s=latency(disturbed, 0.99),
                times_normal_p99=latency(disturbed, 0.99) / latency(normal, 0.99),
            )
            await watched.closed(num_descriptors)

    asyncio.run(test())
