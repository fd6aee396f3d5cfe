"""More than the server can do, and less time than answers take."""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from chaos.harness import Answer, PoolingClient, Watched, answers, percentile, show, traffic

from support.served_model import served

LONG = [pytest.mark.slow, pytest.mark.timeout(900)]
OVERLOAD = 5
MAX_QUEUED = 32


def num_tokens(done: list[Answer]) -> int:
    return sum(len(ids) for answer in done if answer.complete for ids in answer.token_ids.values())


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=LONG)])
def test_five_times_what_it_can_do(model: Path, seconds: int) -> None:
    """Capacity is what the same requests reach, as closely watched, when each is sent as soon as another one ends."""

    async def test() -> None:
        flags = ("--max-num-seqs", "16", "--max-queued-requests", str(MAX_QUEUED), "--log-level", "error")
        # On a busy machine more wait to be refused than it takes connections by default, which is another refusal.
        with served(model, *flags, "--max-connections", "8192") as server:
            client = PoolingClient(server)  # what connections cost this machine would be taken from the answers
            watched = Watched(server, client=client)
            bodies = [{**body, "n": 1} for body in traffic(64, max_tokens=(16, 16))]
            longest_queue = 0

            async def watch_queue() -> None:
                nonlocal longest_queue
                while True:
                    gauges = await watched.gauges()
                    longest_queue = max(longest_queue, int(gauges["polyserve_num_requests_waiting"]))
                    await asyncio.sleep(0.25)

            watching = asyncio.create_task(watch_queue())
            await answers(watched.client, bodies)
            began = time.monotonic()
            done: list[Answer] = []
            while time.monotonic() - began < seconds / 4:
                done += await answers(watched.client, bodies, at_a_time=20)
            capacity = num_tokens(done) / (time.monotonic() - began)
            interval_s = 16 / capacity / OVERLOAD
            computed_s = watched.processor_seconds()
            began = time.monotonic()
            asked = []
            while (elapsed := time.monotonic() - began) < seconds:
                due = int(elapsed / interval_s)
                while len(asked) < due:
                    asked.append(asyncio.create_task(watched.client.ask(bodies[len(asked) % len(bodies)])))
                await asyncio.sleep(0.002)
            done = await asyncio.gather(*asked)
            took_s = time.monotonic() - began
            watching.cancel()
            client.close()
            refused = [answer for answer in done if answer.status == 429]
            accepted = [answer for answer in done if answer.status == 200]
            assert Counter(answer.status for answer in done).keys() == {200, 429}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
            assert all(answer.complete for answer in accepted)
            assert longest_queue <= MAX_QUEUED
            show(
                "overload",
                offered=len(done),
                accepted=len(accepted),
                refusal_p50_ms=percentile((answer.ended - answer.asked for answer in refused), 0.5) * 1e3,
                refusal_p99_ms=percentile((answer.ended - answer.asked for answer in refused), 0.99) * 1e3,
                capacity_tokens_per_s=capacity,
                goodput_share=num_tokens(accepted) / took_s / capacity,
                longest_queue=longest_queue,
                # what offering and refusing take from the machine, beside the answers
                processor_s={name: now - computed_s[name] for name, now in watched.processor_seconds().items()},
            )

    asyncio.run(test())


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=LONG)])
def test_deadlines_are_held_wherever_a_request_is(model: Path, count: int) -> None:
    async def test() -> None:
        draw = random.Random(5)
        with served(model, "--max-num-seqs", "8", "--log-level", "error") as server:
            watched = Watched(server)
            bodies = traffic(count, max_tokens=(900, 900) if model.is_dir() else (200, 400))
            gate = asyncio.Semaphore(24)
            late_s: list[float] = []

            async def ask(body: dict[str, object], timeout_ms: int) -> None:
                async with gate:
                    answer = await watched.client.ask({**body, "stop": []}, timeout_ms=timeout_ms)
                    if answer.complete:
                        return
                    assert answer.error is not None
                    assert answer.error["type"] == "timeout_error"
                    assert answer.status in (200, 504)
                    late_s.append(answer.ended - answer.asked - timeout_ms / 1e3)

            await asyncio.gather(*(ask(body, draw.randint(50, 500)) for body in bodies))
            assert late_s
            show(
                "deadlines",
                count=count,
                over=len(late_s),
                late_p50_ms=percentile(late_s, 0.5) * 1e3,
                late_p99_ms=percentile(late_s, 0.99) * 1e3,
                late_max_ms=max(late_s) * 1e3,
                idle_after_s=await watched.idle(),
            )

    asyncio.run(test())
