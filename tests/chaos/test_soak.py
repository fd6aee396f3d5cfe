"""Half an hour at 70 % of what the server can do (`make soak`; SOAK_MINUTES makes it shorter)."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from chaos.harness import Answer, Watched, answers, percentile, show, traffic

from support.served_model import served

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
SHARE = 0.7
WARM_UP_SHARE = 0.2  # of the time
MAX_GROWTH_MB = 5  # from the first quarter after it to the last, of memory that is front's and engine's alone


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_nothing_grows_and_nothing_slows_down(smollm2_file: Path) -> None:
    async def test() -> None:
        with served(smollm2_file, "--log-level", "error") as server:
            watched = Watched(server)
            bodies = traffic(96, max_tokens=(8, 24))
            golden = await answers(watched.client, bodies)
            assert all(answer.complete for answer in golden)
            began = time.monotonic()
            await answers(watched.client, bodies)
            interval_s = (time.monotonic() - began) / len(bodies) / SHARE
            began, asked, number = time.monotonic(), set(), 0
            done: list[tuple[float, int, Answer]] = []
            memory: list[tuple[float, int]] = []

            async def ask(number: int) -> None:
                answer = await watched.client.ask(bodies[number % len(bodies)])
                done.append((answer.asked - began, number % len(bodies), answer))

            while (elapsed := time.monotonic() - began) < 60 * MINUTES:
                while number < elapsed / interval_s:
                    task = asyncio.create_task(ask(number))
                    asked.add(task)
                    task.add_done_callback(asked.discard)
                    number += 1
                if not memory or elapsed - memory[-1][0] > 5.0:
                    memory.append((elapsed, watched.anonymous_bytes()))
                await asyncio.sleep(0.01)
            await asyncio.gather(*asked)
            cut = [answer for _, _, answer in done if not answer.complete]
            assert not cut, f"{len(cut)} of {len(done)} had no whole answer, one with {cut[0].status}: {cut[0].error}"
            assert all(answer.bits == golden[index].bits for _, index, answer in done)
            await watched.idle()
            warm = 60 * MINUTES * WARM_UP_SHARE
            steady = [num_bytes for when, num_bytes in memory if when > warm]
            half = (warm + 60 * MINUTES) / 2
            early = [answer.ended - answer.asked for when, _, answer in done if warm < when <= half]
            late = [answer.ended - answer.asked for when, _, answer in done if when > half]
            quarter = max(1, len(steady) // 4)
            growth_mb = (sum(steady[-quarter:]) - sum(steady[:quarter])) / quarter / 1e6
            show(
                "soak",
                minutes=MINUTES,
                requests=len(done),
                memory_growth_mb=growth_mb,
                latency_p50_drift=percentile(late, 0.5) / percentile(early, 0.5) - 1,
                latency_p99_drift=percentile(late, 0.99) / percentile(early, 0.99) - 1,
            )
            assert growth_mb < MAX_GROWTH_MB

    asyncio.run(test())
