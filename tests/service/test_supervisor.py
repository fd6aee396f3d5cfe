"""Engines die and streams go on: kills, requests that kill, engines that are stuck, and when it is hopeless."""

import asyncio
import os
import random
import signal
from contextlib import suppress

import pytest

from polyserve.errors import EngineDead, InternalError
from polyserve.sampling_params import SamplingParams
from polyserve.service import supervisor
from polyserve.service.async_llm import AsyncLLM
from support.fake_engine import ENDLESS, POISON
from support.fake_service import LONG, answer, fake_llm, restarted, run, text_of


def engine_pid(llm: AsyncLLM) -> int:
    return llm._engine.pid


def expected(prompt: bytes, choice: int, num_tokens: int) -> str:
    """What the fake engine answers."""
    return "".join(chr(prompt[(choice + i) % len(prompt)]) for i in range(num_tokens))


def test_streams_go_on_over_kills_with_the_tokens_they_would_have_had() -> None:
    async def test() -> None:
        draw = random.Random(7)
        async with fake_llm() as llm:
            prompts = [f"prompt {i}".encode() for i in range(16)]
            params = SamplingParams(n=2, max_tokens=700, logprobs=0)
            tasks = [
                asyncio.create_task(answer(llm, f"r{i}", list(prompt), params)) for i, prompt in enumerate(prompts)
            ]
            for number in range(1, 4):
                await asyncio.sleep(draw.uniform(0.05, 0.3))
                os.kill(engine_pid(llm), signal.SIGKILL)
                await restarted(llm, number)
            for prompt, task in zip(prompts, tasks, strict=True):
                deltas = await task
                for choice in range(2):
                    assert text_of(deltas, choice) == expected(prompt, choice, 700)
                    of_choice = [delta for delta in deltas if delta.choice == choice]
                    assert sum(len(delta.logprobs or ()) for delta in of_choice) == 700
                    assert [delta.finish_reason for delta in of_choice if delta.finish_reason] == ["length"]
            assert llm.num_restarts == 3

    run(test())


def test_requests_that_come_while_there_is_no_engine_are_served_by_the_next_one() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            os.kill(engine_pid(llm), signal.SIGKILL)
            while llm.progressing:
                await asyncio.sleep(0.002)
            assert text_of(await answer(llm, "r", list(b"abc"), SamplingParams(max_tokens=5))) == "abcab"

    run(test())


def test_a_request_that_is_left_while_there_is_no_engine_is_not_sent_to_the_next_one() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            task = asyncio.create_task(answer(llm, "r", list(b"abc"), LONG))
            await asyncio.sleep(0.05)
            os.kill(engine_pid(llm), signal.SIGKILL)
            while llm.progressing:
                await asyncio.sleep(0.002)
            task.cancel()
            await restarted(llm, 1)
            await answer(llm, "other", list(b"abc"), SamplingParams(max_tokens=1))
            assert llm.stats.num_running == 0

    run(test())


def test_a_request_that_kills_the_engine_is_given_up_and_the_others_go_on() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            prompts = [f"prompt {i}".encode() for i in range(31)]
            params = SamplingParams(max_tokens=200)
            good = [asyncio.create_task(answer(llm, f"r{i}", list(p), params)) for i, p in enumerate(prompts[:20])]
            poison = asyncio.create_task(answer(llm, "poison", [POISON], params))
            good += [asyncio.create_task(answer(llm, f"s{i}", list(p), params)) for i, p in enumerate(prompts[20:])]
            with pytest.raises(InternalError, match="given up"):
                await poison
            for prompt, task in zip(prompts, good, strict=True):
                assert text_of(await task) == expected(prompt, 0, 200)

    run(test())


def test_two_requests_that_kill_are_both_found() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            params = SamplingParams(max_tokens=300)
            tasks = [
                asyncio.create_task(answer(llm, f"r{i}", [POISON] if i in (2, 5) else list(b"ok"), params))
                for i in range(8)
            ]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [i for i, result in enumerate(results) if isinstance(result, InternalError)] == [2, 5]

    run(test())


def test_kills_from_outside_make_nobody_guilty() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            tasks = [asyncio.create_task(answer(llm, f"r{i}", list(b"abc"), LONG)) for i in range(8)]
            for number in range(1, 9):
                await restarted(llm, number - 1)
                os.kill(engine_pid(llm), signal.SIGKILL)
                while llm.progressing:
                    await asyncio.sleep(0.001)
            assert {text_of(deltas) for deltas in await asyncio.gather(*tasks)} == {"abc" * 300}

    run(test())


@pytest.mark.parametrize("stop", [True, False])
def test_an_engine_that_is_stuck_shows_its_stacks_and_is_started_again(
    stop: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        async with fake_llm(step_timeout_s=0.5) as llm:
            task = asyncio.create_task(answer(llm, "r", list(b"abc"), LONG))
            await asyncio.sleep(0.05)
            if stop:
                os.kill(engine_pid(llm), signal.SIGSTOP)
            else:
                with pytest.raises(InternalError, match="given up"):
                    await answer(llm, "endless", [ENDLESS], LONG)
            assert text_of(await task) == "abc" * 300
            assert llm.num_restarts >= 1

    run(test())
    assert "Fatal Python error: Aborted" in capfd.readouterr().err


def test_patience_with_a_slow_engine_ends_when_one_was_well_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with fake_llm(step_timeout_s=0.4) as llm:
            os.kill(engine_pid(llm), signal.SIGSTOP)
            await restarted(llm, 1)
            assert llm._engine._patience == 2
            monkeypatch.setattr(supervisor, "STABLE_S", 0.5)
            while llm._engine._patience != 1:
                await asyncio.sleep(0.01)
            assert llm.num_restarts == 1

    run(test())


def test_an_engine_that_is_stuck_while_it_loads_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(supervisor, "LOAD_PATIENCE", 0)
        async with fake_llm(step_timeout_s=1.0) as llm:
            task = asyncio.create_task(answer(llm, "r", list(b"abc"), LONG))
            await asyncio.sleep(0.05)
            first = engine_pid(llm)
            os.kill(first, signal.SIGKILL)
            while engine_pid(llm) == first:
                await asyncio.sleep(0.001)
            os.kill(engine_pid(llm), signal.SIGSTOP)
            assert text_of(await task) == "abc" * 300
            assert llm.num_restarts == 2

    run(test())


def test_a_silent_engine_is_not_progressing() -> None:
    async def test() -> None:
        async with fake_llm(step_timeout_s=2.0) as llm:
            assert llm.progressing
            os.kill(engine_pid(llm), signal.SIGSTOP)
            await asyncio.sleep(1.3)
            assert not llm.progressing
            assert llm.num_restarts == 0
            os.kill(engine_pid(llm), signal.SIGCONT)

    run(test())


def test_an_idle_engine_is_asked_and_not_taken_for_stuck() -> None:
    async def test() -> None:
        async with fake_llm(step_timeout_s=0.4) as llm:
            for _ in range(20):
                await asyncio.sleep(0.05)
                assert llm.progressing
            assert llm.num_restarts == 0

    run(test())


def test_an_engine_that_dies_again_and_again_ends_every_request_with_the_reason() -> None:
    async def kill_all(llm: AsyncLLM) -> None:
        while not llm.dead.is_set():
            with suppress(ProcessLookupError):
                os.kill(engine_pid(llm), signal.SIGKILL)
            await asyncio.sleep(0.01)

    async def test() -> None:
        async with fake_llm() as llm:
            killer = asyncio.create_task(kill_all(llm))
            with pytest.raises(EngineDead, match="10 times in a row"):
                await answer(llm, "r", list(b"abc"), LONG)
            await killer
            assert "killed by SIGKILL" in (await llm.wait_dead()).message
            with pytest.raises(EngineDead):
                await answer(llm, "late", list(b"abc"), LONG)

    run(test())
