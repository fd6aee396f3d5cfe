"""SIGTERM lets every stream finish; when the front is killed, the engine follows."""

import asyncio
import signal
import time
from pathlib import Path

import psutil
import pytest
from chaos.harness import Watched, answers, show, traffic

from support.served_model import served

DRAIN_TIMEOUT_S = 120


@pytest.mark.parametrize("num_streams", [16, pytest.param(64, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_sigterm_cuts_no_stream(model: Path, num_streams: int) -> None:
    async def test() -> None:
        with served(model, "--log-level", "error", "--drain-timeout", str(DRAIN_TIMEOUT_S)) as server:
            watched = Watched(server)
            bodies = traffic(num_streams)
            golden = await answers(watched.client, bodies, at_a_time=num_streams)
            engine = watched.engine
            streaming = asyncio.create_task(answers(watched.client, bodies, at_a_time=num_streams))
            while (await watched.gauges())["polyserve_num_requests_running"] < num_streams / 2:
                await asyncio.sleep(0.01)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            while await watched.ready():
                await asyncio.sleep(0.002)
            unready_s = time.monotonic() - began
            refused = (await watched.client.ask(bodies[0])).status if not streaming.done() else 503
            done = await streaming
            assert refused == 503
            assert all(answer.complete for answer in done)
            assert [answer.bits for answer in done] == [answer.bits for answer in golden]
            assert await asyncio.to_thread(server.process.wait, DRAIN_TIMEOUT_S) == 0
            assert engine is not None
            assert not engine.is_running()
            show("SIGTERM", streams=len(done), unready_after_s=unready_s, exit_after_s=time.monotonic() - began)

    asyncio.run(test())


def test_when_the_front_is_killed_all_its_processes_end(model: Path) -> None:
    async def test() -> None:
        with served(model, "--log-level", "error") as server:
            watched = Watched(server)
            streaming = asyncio.create_task(answers(watched.client, traffic(8, max_tokens=(200, 300))))
            while not (await watched.gauges())["polyserve_num_requests_running"]:
                await asyncio.sleep(0.01)
            processes = watched.front.children()
            assert watched.engine in processes
            began = time.monotonic()
            server.process.kill()
            while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
                assert time.monotonic() - began < 10
                await asyncio.sleep(0.002)
            show("kill -9 of the front", processes=len(processes), ended_after_s=time.monotonic() - began)
            await asyncio.gather(streaming, return_exceptions=True)

    asyncio.run(test())
