"""The engine is killed, stopped and poisoned under streams: every stream ends with the tokens of an undisturbed run."""

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from chaos.harness import Answer, Client, Watched, answers, percentile, show, traffic

from support.served_model import served

NUM_STREAMS = 32
NUM_STOPS = 5


async def under_streams(
    client: Client, bodies: list[dict[str, object]], ended: asyncio.Event
) -> list[tuple[int, Answer]]:
    """Keep streams going until `ended`, and then let them finish. Returns (number of the body, answer)."""
    done: list[tuple[int, Answer]] = []

    async def keep_going(first: int) -> None:
        number = first
        while True:
            done.append((number, await client.ask(bodies[number])))
            if ended.is_set():
                return
            number = (number + NUM_STREAMS) % len(bodies)

    await asyncio.gather(*(keep_going(number) for number in range(NUM_STREAMS)))
    return done


def assert_equal(done: list[tuple[int, Answer]], golden: list[Answer]) -> None:
    assert done
    for number, answer in done:
        assert answer.complete, f"stream {number} was cut: {answer.error}"
        assert answer.bits == golden[number].bits, f"stream {number} has other tokens"


async def until_tokens_come(watched: Watched) -> None:
    name = "polyserve_generation_tokens_total"
    before = (await watched.gauges())[name]
    while (await watched.gauges())[name] == before:
        await asyncio.sleep(0.02)


async def kill_and_wait(watched: Watched, number: int) -> float:
    """Returns how long it took until the server was ready again."""
    while (engine := watched.engine) is None:  # between two processes
        await asyncio.sleep(0.005)
    began = time.monotonic()
    with suppress(ProcessLookupError):
        os.kill(engine.pid, number)
    while watched.engine == engine or not await watched.ready():
        await asyncio.sleep(0.01)
    return time.monotonic() - began


@pytest.mark.parametrize("num_kills", [4, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_kill_9_at_random_moments(model: Path, num_kills: int) -> None:
    async def test() -> None:
        draw = random.Random(11)
        with served(model, "--log-level", "error") as server:
            watched = Watched(server)
            long = num_kills > 10
            bodies = traffic(NUM_STREAMS, max_tokens=(20, 60) if long else (100, 300), grammars=long)
            golden = await answers(watched.client, bodies)
            ended = asyncio.Event()
            streaming = asyncio.create_task(under_streams(watched.client, bodies, ended))
            restarts_s = []
            for _ in range(num_kills):
                if draw.random() < 0.7:  # else perhaps before anybody has got a token again
                    await until_tokens_come(watched)
                await asyncio.sleep(draw.uniform(0.0, 2.0 if long else 0.3))
                if draw.random() < 0.2 and (engine := watched.engine) is not None:
                    engine.kill()  # and then the one that is being loaded
                    await asyncio.sleep(draw.uniform(0.0, 0.5))
                    while watched.engine in (None, engine):
                        await asyncio.sleep(0.005)
                restarts_s.append(await kill_and_wait(watched, signal.SIGKILL))
            ended.set()
            done = await streaming
            assert_equal(done, golden)
            show(
                "kill -9",
                kills=num_kills,
                streams=len(done),
                restart_median_s=percentile(restarts_s, 0.5),
                restart_max_s=max(restarts_s),
                longest_pause_s=max(answer.longest_pause_s for _, answer in done),
            )
            await watched.idle()

    asyncio.run(test())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_engine_that_is_stopped_is_noticed_and_started_again(model: Path) -> None:
    async def test() -> None:
        with served(model, "--log-level", "error", "--step-timeout", "5") as server:
            watched = Watched(server)
            bodies = traffic(NUM_STREAMS)
            golden = await answers(watched.client, bodies)
            ended = asyncio.Event()
            streaming = asyncio.create_task(under_streams(watched.client, bodies, ended))
            took_s = []
            for _ in range(NUM_STOPS):
                await asyncio.sleep(1.0)
                took_s.append(await kill_and_wait(watched, signal.SIGSTOP))
            ended.set()
            done = await streaming
            assert_equal(done, golden)
            show("SIGSTOP", stops=NUM_STOPS, streams=len(done), until_ready_max_s=max(took_s))

    asyncio.run(test())
