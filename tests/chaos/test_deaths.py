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
RESTARTS = "polyserve_engine_restarts_total"


class Streams:
    """So many at a time, one after another."""

    def __init__(self, client: Client, bodies: list[dict[str, object]]) -> None:
        self.client, self.bodies = client, bodies
        self.live: dict[int, Answer] = {}
        self.done: list[tuple[int, Answer]] = []  # with the number of the body
        self.ended = False

    async def keep_going(self) -> None:
        """Until `ended`; then the last ones finish."""
        await asyncio.gather(*(self._one_after_another(number) for number in range(NUM_STREAMS)))

    async def _one_after_another(self, number: int) -> None:
        while True:
            self.live[number] = Answer()
            self.done.append((number, await self.client.ask(self.bodies[number], answer=self.live[number])))
            if self.ended:
                return
            number = (number + NUM_STREAMS) % len(self.bodies)

    async def longest_pause_s(self, since: float) -> float:
        """Wait, once another engine is there, until each that had begun goes on. Returns how long after the end of the
        former engine the last one did."""
        now = time.monotonic()
        paused = [answer for answer in self.live.values() if answer.times and not answer.ended]
        while not all(answer.first_after(now) or answer.ended for answer in paused):
            await asyncio.sleep(0.005)
        return max((answer.first_after(now) - since for answer in paused if answer.first_after(now)), default=0.0)


def assert_equal(done: list[tuple[int, Answer]], golden: list[Answer]) -> None:
    assert done
    for number, answer in done:
        assert answer.complete, f"stream {number} was cut: {answer.error}"
        assert answer.bits == golden[number].bits, f"stream {number} has other tokens"


async def ready_after_s(watched: Watched, since: float) -> float:
    """Wait until the engine of now has loaded. Returns how long after the end of the former one that was."""
    while not await watched.ready():
        await asyncio.sleep(0.005)
    return time.monotonic() - since


async def recomputation_s(client: Client, bodies: list[dict[str, object]], golden: list[Answer]) -> float:
    """How long an engine that is well takes to compute all streams as they are at their ends, all at once.

    It is the most that another one has to do before they go on."""

    async def compute(body: dict[str, object], answer: Answer) -> float:
        prompt = await client.token_ids(str(body["prompt"]))
        done = [prompt + token_ids for token_ids in answer.token_ids.values()]
        again = await client.ask({"prompt": done, "max_tokens": 1, "cache_salt": "computed again"})
        return again.ended - again.asked

    return max(await asyncio.gather(*map(compute, bodies, golden)))


async def signal_engine(watched: Watched, number: int) -> float:
    """Returns when that was, once another engine begins to load."""
    while (engine := watched.engine) is None:  # between two processes
        await asyncio.sleep(0.005)
    restarts = (await watched.gauges())[RESTARTS]
    began = time.monotonic()
    with suppress(ProcessLookupError):
        os.kill(engine.pid, number)
    while (await watched.gauges())[RESTARTS] == restarts:
        await asyncio.sleep(0.005)
    return began


@pytest.mark.parametrize("num_kills", [4, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_kill_9_at_random_moments(model: Path, num_kills: int) -> None:
    async def test() -> None:
        draw = random.Random(11)
        with served(model, "--log-level", "error") as server:
            watched = Watched(server)
            long = num_kills > 10
            bodies = traffic(NUM_STREAMS, max_tokens=(20, 60) if long else (100, 300), grammars=long)
            golden = await answers(watched.client, bodies)
            most_s = await recomputation_s(watched.client, bodies, golden)
            streams = Streams(watched.client, bodies)
            streaming = asyncio.create_task(streams.keep_going())
            pauses_s, restarts_s = [], []
            for _ in range(num_kills):
                await asyncio.sleep(draw.uniform(0.0, 2.0 if long else 0.3))
                killed = await signal_engine(watched, signal.SIGKILL)
                if draw.random() < 0.3:  # the one that is being loaded or computes again, too
                    await asyncio.sleep(draw.uniform(0.0, 2.0 if long else 0.3))
                else:
                    restarts_s.append(await ready_after_s(watched, killed))
                    pauses_s.append(await streams.longest_pause_s(killed))
            streams.ended = True
            await streaming
            assert_equal(streams.done, golden)
            show(
                "kill -9",
                kills=num_kills,
                streams=len(streams.done),
                pause_median_s=percentile(pauses_s, 0.5),
                pause_max_s=max(pauses_s),
                restart_median_s=percentile(restarts_s, 0.5),
                restart_max_s=max(restarts_s),
                recomputation_s=most_s,
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
            streams = Streams(watched.client, bodies)
            streaming = asyncio.create_task(streams.keep_going())
            pauses_s = []
            for _ in range(NUM_STOPS):
                await asyncio.sleep(1.0)
                pauses_s.append(await streams.longest_pause_s(await signal_engine(watched, signal.SIGSTOP)))
            streams.ended = True
            await streaming
            assert_equal(streams.done, golden)
            show("SIGSTOP", stops=NUM_STOPS, streams=len(streams.done), pause_max_s=max(pauses_s))

    asyncio.run(test())
