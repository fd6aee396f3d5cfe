"""The process after the present one: it takes over, it is replaced, and nothing depends on it."""

import asyncio
import os
import signal

import psutil
import pytest

from polyserve.config import EngineConfig
from polyserve.errors import ModelLoadError
from polyserve.sampling_params import SamplingParams
from polyserve.service.async_llm import AsyncLLM
from polyserve.service.engine_process import EngineProcess
from support.fake_service import answer, fake_llm, run, text_of


async def spare_of(llm: AsyncLLM, *, but: int = 0) -> int:
    """The process id of the one at hand, once there is one other than `but`."""
    while True:
        process = llm._engine._spare._process
        if process is not None and process.pid != but:
            return process.pid
        await asyncio.sleep(0.005)


async def killed(llm: AsyncLLM) -> int:
    """Kill the engine; returns the process id of the next one, which answers."""
    before = llm.num_restarts
    os.kill(llm._engine.pid, signal.SIGKILL)
    while llm.num_restarts == before or not llm.progressing:
        await asyncio.sleep(0.005)
    assert text_of(await answer(llm, f"after {before}", list(b"abc"), SamplingParams(max_tokens=5))) == "abcab"
    return llm._engine.pid


def test_it_becomes_the_engine_and_another_one_takes_its_place() -> None:
    async def test() -> None:
        async with fake_llm(spare=True, step_timeout_s=0.5) as llm:
            last = 0
            for _ in range(3):
                spare = await spare_of(llm, but=last)
                await asyncio.sleep(1.0)  # it may be silent for longer than an engine
                assert await killed(llm) == spare
                last = spare
            pids = llm._engine.pid, await spare_of(llm, but=last)
        assert not any(map(psutil.pid_exists, pids))

    run(test())


def test_without_it_a_restart_takes_longer_and_that_is_all() -> None:
    async def test() -> None:
        async with fake_llm(spare=True) as llm:
            spare = await spare_of(llm)
            os.kill(spare, signal.SIGKILL)
            while llm._engine._spare._process.alive:  # type: ignore[union-attr]
                await asyncio.sleep(0.005)
            assert await killed(llm) != spare

    run(test())


def test_none_is_made_unless_it_is_wanted() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            before = psutil.Process().children()
            await killed(llm)
            assert len(psutil.Process().children()) == len(before)

    run(test())


def test_it_has_imported_torch_before_it_is_told_what_to_load() -> None:
    async def test() -> None:
        spare = await EngineProcess.start(spare=True)
        process = psutil.Process(spare.pid)
        while not any("libtorch" in mapped.path for mapped in process.memory_maps()):
            await asyncio.sleep(0.05)
        spare.load(EngineConfig(model="there/is/none"))
        with pytest.raises(ModelLoadError, match="there/is/none"):
            await spare.ready()
        await spare.close()

    run(test())
