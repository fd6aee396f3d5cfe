"""The fork server: engines come from it, without it they are started, and nothing else depends on it."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from polyserve.config import EngineConfig
from polyserve.errors import ModelLoadError
from polyserve.sampling_params import SamplingParams
from polyserve.service import engine_forks
from polyserve.service.async_llm import AsyncLLM
from polyserve.service.engine_forks import EngineForks
from polyserve.service.engine_process import COMMAND
from polyserve.service.fork_server import FORK_SERVER, NICENESS
from support.fake_service import answer, fake_llm, restarted, run, text_of


async def server_of(llm: AsyncLLM, *, but: int = 0) -> int:
    """The process id of the fork server, once there is one other than `but`."""
    while True:
        server = llm._engine._forks._server
        if server is not None and server.pid != but:
            return server.pid
        await asyncio.sleep(0.005)


async def killed(llm: AsyncLLM, number: signal.Signals = signal.SIGKILL) -> psutil.Process:
    """Kill the engine; returns the next one, which answers."""
    before = llm.num_restarts
    os.kill(llm._engine.pid, number)
    await restarted(llm, before + 1)
    assert text_of(await answer(llm, f"after {before}", list(b"abc"), SamplingParams(max_tokens=5))) == "abcab"
    return psutil.Process(llm._engine.pid)


def is_fork(engine: psutil.Process) -> bool:
    return FORK_SERVER in engine.cmdline()


async def forked(llm: AsyncLLM, *, hurry: bool = True) -> psutil.Process:
    """Kill engines until one is a fork, which is when the server has imported everything.

    hurry: it need not give way to other tests."""
    if hurry:
        with suppress(OSError):
            Path(f"/proc/{await server_of(llm)}/autogroup").write_text("0")
    while not is_fork(engine := await killed(llm)):
        pass
    return engine


def niceness_of_session(pid: int) -> int:
    return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])


def test_one_server_forks_every_engine_and_none_outlives_the_front() -> None:
    async def test() -> None:
        async with fake_llm(fork_server=True) as llm:
            server = await server_of(llm)
            await forked(llm)
            for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL):
                engine = await killed(llm, number)
                assert is_fork(engine)
                assert engine.ppid() == os.getpid()
                assert await server_of(llm) == server
        assert not psutil.pid_exists(server)
        assert not engine.is_running()

    run(test())


def test_before_everything_is_imported_an_engine_is_started() -> None:
    async def test() -> None:
        async with fake_llm(fork_server=True) as llm:
            server = await server_of(llm)
            os.kill(server, signal.SIGSTOP)
            death = asyncio.create_task(killed(llm))
            await asyncio.sleep(0.1)
            os.kill(server, signal.SIGCONT)
            assert not is_fork(await death)
            assert await server_of(llm) == server
            await forked(llm)

    run(test())


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel weighs no sessions")
def test_what_imports_gives_way_and_forks_do_not() -> None:
    async def test() -> None:
        async with fake_llm(fork_server=True) as llm:
            server = await server_of(llm)
            while niceness_of_session(server) != NICENESS:
                await asyncio.sleep(0.005)
            engine = await forked(llm, hurry=False)
            assert engine.nice() == psutil.Process(server).nice() == os.nice(0)
            assert niceness_of_session(server) == niceness_of_session(engine.pid) == 0

    run(test())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_server_that_answers_an_engine_is_started(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_forks, "FORK_TIMEOUT_S", 0.5)

    async def test() -> None:
        async with fake_llm(fork_server=True) as llm:
            server = await server_of(llm)
            os.kill(server, number)
            assert not is_fork(await killed(llm))
            assert await server_of(llm, but=server)
        assert not psutil.pid_exists(server)

    run(test())


def test_an_engine_that_cannot_be_started_ends_the_server_with_the_reason() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            llm._engine._forks._command = ("/there/is/none",)
            os.kill(llm._engine.pid, signal.SIGKILL)
            assert "/there/is/none" in (await llm.wait_dead()).message

    run(test())


def test_without_a_way_to_watch_forks_there_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")

    async def test() -> None:
        async with fake_llm(fork_server=True) as llm:
            assert not is_fork(await killed(llm))
            assert llm._engine._forks._server is None

    run(test())


def test_there_is_none_unless_it_is_wanted() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            before = psutil.Process().children()
            assert not is_fork(await killed(llm))
            assert len(psutil.Process().children()) == len(before)

    run(test())


def test_a_fork_has_imported_torch_and_says_what_goes_wrong_and_how_it_ends() -> None:
    async def test() -> None:
        source = EngineForks(COMMAND, wanted=True)
        await source.prepare()
        while not is_fork(psutil.Process((engine := await source.take()).pid)):
            await engine.close()
        assert any("libtorch" in mapped.path for mapped in psutil.Process(engine.pid).memory_maps())
        engine.load(EngineConfig(model="there/is/none"))
        with pytest.raises(ModelLoadError, match="there/is/none"):
            await engine.ready()
        assert "exit code 2" in (await engine.died()).message
        await engine.close()
        engine = await source.take()
        os.kill(engine.pid, signal.SIGSEGV)
        assert "killed by SIGSEGV" in (await engine.died()).message
        await engine.close()
        await source.close()

    run(test())
