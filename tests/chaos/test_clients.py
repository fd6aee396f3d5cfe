"""Clients that send nonsense, leave, or do not read: nobody else notices, and nothing is left of them."""

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from chaos.harness import Answer, Client, Watched, show, traffic
from chaos.malformed import grpc_calls, http_requests

from support.live_server import live_server, wait_until
from support.served_model import served

LONG = pytest.mark.slow, pytest.mark.timeout(3600)
REPLY_TIMEOUT_S = 0.5  # for requests that are waited for in vain
SERVERS_FAULTS = {code for code in grpc.StatusCode if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)}


async def http_status(client: Client, data: bytes) -> int:
    """The status of the answer; 0: none came."""
    with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
        async with client.connection() as (reader, writer):
            writer.write(data)
            line = await asyncio.wait_for(reader.readline(), REPLY_TIMEOUT_S)
            return int(line.split()[1]) if line else 0
    return 0


async def grpc_status(channel: grpc.aio.Channel, method: str, message: bytes) -> grpc.StatusCode:
    call = channel.unary_stream(method)(message, timeout=5.0)
    with suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    code: grpc.StatusCode = await call.code()
    return code


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=LONG)])
def test_malformed_requests_disturb_nobody(model: Path, count: int) -> None:
    """Seven of ten over HTTP, the others over gRPC; beside them one stream after another, always the same."""

    async def test() -> None:
        with served(model, "--log-level", "error") as server:
            watched = Watched(server)
            client, golden_body = watched.client, traffic(1)[0]
            golden = await client.ask(golden_body)
            first = traffic(32, max_tokens=(5, 9), grammars=True)
            await asyncio.gather(*map(client.ask, first))  # memory to work in, and the vocabulary as grammars need it
            engine, before = watched.engine, watched.anonymous_bytes()
            ended = asyncio.Event()
            streams: list[Answer] = []

            async def stream() -> None:
                while not ended.is_set():
                    streams.append(await client.ask(golden_body))

            streaming = asyncio.create_task(stream())
            async with grpc.aio.insecure_channel(server.grpc_address) as channel:
                gate = asyncio.Semaphore(16)

                async def gated(work):  # type: ignore[no-untyped-def]
                    async with gate:
                        return await work

                http = [gated(http_status(client, data)) for data in http_requests(count * 7 // 10, seed=1)]
                calls = [gated(grpc_status(channel, *call)) for call in grpc_calls(count * 3 // 10, seed=2)]
                statuses = await asyncio.gather(*http)
                codes = await asyncio.gather(*calls)
            ended.set()
            await streaming
            assert max(statuses) < 500
            assert not SERVERS_FAULTS.intersection(codes)
            assert all(answer.bits == golden.bits for answer in streams)
            assert watched.engine == engine
            await watched.idle()
            drift_mb = (watched.anonymous_bytes() - before) / 1e6
            show(
                "malformed",
                requests=count,
                unanswered=statuses.count(0),
                accepted=statuses.count(200) + codes.count(grpc.StatusCode.OK),
                golden_streams=len(streams),
                memory_drift_mb=drift_mb,
            )
            assert drift_mb < 20

    asyncio.run(test())


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=LONG)])
def test_who_leaves_at_a_random_moment_leaves_nothing_behind(model: Path, count: int) -> None:
    async def test() -> None:
        draw = random.Random(3)
        with served(model, "--log-level", "error") as server:
            watched = Watched(server)
            bodies = traffic(count, max_tokens=(50, 200))
            await asyncio.gather(*(watched.client.ask(body) for body in traffic(8, max_tokens=(5, 9))))
            handles = watched.handles()
            gate = asyncio.Semaphore(32)

            async def leave(number: int) -> None:
                async with gate:
                    if number % 2:
                        await watched.client.ask(bodies[number], leave_after=draw.randrange(1, 20))
                    else:
                        with suppress(TimeoutError):
                            body = {**bodies[number], "stream": number % 4 == 0}
                            await asyncio.wait_for(watched.client.ask(body), draw.uniform(0.0, 0.5))

            await asyncio.gather(*(leave(number) for number in range(count)))
            idle_after_s = await watched.idle()
            await watched.closed(handles[0])
            show("disconnects", count=count, idle_after_s=idle_after_s, before=handles, after=watched.handles())

    asyncio.run(test())


def test_no_task_of_the_server_outlives_its_client() -> None:
    async def leave_all(client: Client) -> None:
        body = {"prompt": "hi", "max_tokens": 50, "stream": True}
        await asyncio.gather(*(client.ask(body, leave_after=1 + number % 3) for number in range(100)))

    with live_server() as server:
        before = server.num_tasks()
        server.llm.hold(5)
        asyncio.run(leave_all(Client(server)))  # type: ignore[arg-type]
        wait_until(lambda: not server.llm.live)
        wait_until(lambda: server.num_tasks() <= before)
