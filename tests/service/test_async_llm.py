"""The front of a server against an engine process without a model: answers, aborts, refusals, deaths and ends."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from polyserve.config import EngineConfig
from polyserve.errors import DeadlineExceeded, EngineDead, InternalError, InvalidRequest, ModelLoadError
from polyserve.request import SequenceOutput, TokenLogprob
from polyserve.sampling_params import SamplingParams
from polyserve.service.async_llm import AsyncLLM, ChoiceDelta, merged
from polyserve.service.engine_process import EngineProcess
from support.fake_engine import COMMAND, EOS, HOPELESS, MAX_PROMPT_LEN
from support.fake_service import LONG, answer, fake_llm, run, text_of


async def until_idle(llm: AsyncLLM) -> None:
    while llm.stats.num_running:
        await asyncio.sleep(0.002)


async def first_delta(llm: AsyncLLM, request_id: str, prompt: Sequence[int], params: SamplingParams) -> ChoiceDelta:
    """Take one delta and leave."""
    async with aclosing(llm.generate(request_id, prompt, params)) as deltas:
        return await anext(deltas)


def test_many_requests_at_a_time_get_their_own_answers() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            prompts = [f"prompt {i} 你好 ".encode() for i in range(50)]
            answers = await asyncio.gather(
                *(
                    answer(llm, f"r{i}", list(prompt), SamplingParams(max_tokens=len(prompt)))
                    for i, prompt in enumerate(prompts)
                )
            )
            assert [text_of(deltas).encode() for deltas in answers] == prompts
            assert all(deltas[-1].finish_reason == "length" for deltas in answers)

    run(test())


def test_the_choices_of_a_request_come_with_their_numbers() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            deltas = await answer(llm, "r", list(b"abc"), SamplingParams(n=3, max_tokens=4))
            assert [text_of(deltas, choice) for choice in range(3)] == ["abca", "bcab", "cabc"]

    run(test())


def test_what_concerns_the_prompt_comes_with_the_first_delta() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            deltas = await answer(llm, "r", list(b"abc"), SamplingParams(max_tokens=4, prompt_logprobs=0))
            entries = deltas[0].prompt_logprobs
            assert entries is not None
            assert [entry and entry.token for entry in entries] == [None, "b", "c"]
            assert deltas[0].num_cached_tokens == 3
            assert all(delta.prompt_logprobs is None for delta in deltas[1:])

    run(test())


def test_a_stop_string_ends_its_choice_alone_and_aborts_it_in_the_engine() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            deltas = await answer(
                llm, "r", list(b"xyz one STOP"), SamplingParams(n=2, max_tokens=20, stop=["STOPxyz o"])
            )
            assert [text_of(deltas, choice) for choice in range(2)] == ["xyz one ", "yz one "]
            deltas = await answer(llm, "s", list(b"ab!"), SamplingParams(n=2, max_tokens=900, stop=["!a"]))
            assert [delta.stop_reason for delta in deltas if delta.finish_reason] == ["!a", "!a"]
            await asyncio.wait_for(until_idle(llm), 0.5)  # 900 tokens take longer

    run(test())


def test_the_end_of_sequence_ends_an_answer_without_its_text() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            deltas = await answer(llm, "r", [*b"abc", EOS], LONG)
            last = deltas[-1]  # of several tokens, where they came faster than they were read
            assert (text_of(deltas), last.finish_reason, last.token_ids[-1]) == ("abc", "stop", EOS)

    run(test())


@pytest.mark.parametrize("leave", ["close", "cancel"])
def test_a_request_that_its_client_leaves_is_aborted_in_the_engine(leave: str) -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            if leave == "close":
                await first_delta(llm, "r", list(b"abc"), LONG)
            else:
                task = asyncio.create_task(answer(llm, "r", list(b"abc"), LONG))
                await asyncio.sleep(0.05)
                assert llm.stats.num_running == 1
                task.cancel()
            await asyncio.wait_for(until_idle(llm), 0.5)  # 900 tokens take longer
            assert text_of(await answer(llm, "r", list(b"de"), SamplingParams(max_tokens=2))) == "de"

    run(test())


def test_when_its_time_is_over_a_request_is_aborted_even_if_nobody_fetches_its_answer() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            deltas = llm.generate("r", list(b"abc"), LONG, deadline=time.monotonic() + 0.1)
            async with aclosing(deltas):
                await anext(deltas)
                await asyncio.sleep(0.15)
                await asyncio.wait_for(until_idle(llm), 0.5)  # 900 tokens take longer
                with pytest.raises(DeadlineExceeded):
                    await anext(deltas)

    run(test())


def test_a_deadline_holds_while_there_is_no_engine() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            os.kill(llm._engine.pid, signal.SIGSTOP)
            deltas = llm.generate("r", list(b"abc"), LONG, deadline=time.monotonic() + 0.1)
            with pytest.raises(DeadlineExceeded):
                await anext(deltas)
            os.kill(llm._engine.pid, signal.SIGCONT)
            await asyncio.wait_for(until_idle(llm), 0.5)

    run(test())


def test_a_thousand_disconnects_leave_nothing_behind() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            for begin in range(0, 1000, 100):
                await asyncio.gather(
                    *(
                        first_delta(llm, f"r{begin + i}", list(b"abc"), SamplingParams(n=2, max_tokens=900))
                        for i in range(100)
                    )
                )
            await until_idle(llm)
            assert text_of(await answer(llm, "last", list(b"abc"), SamplingParams(max_tokens=3))) == "abc"

    run(test())


def test_a_reader_that_lags_gets_what_waits_as_one_delta() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            async with aclosing(llm.generate("r", list(b"abc"), SamplingParams(max_tokens=100, logprobs=0))) as deltas:
                first = await anext(deltas)
                await asyncio.sleep(0.4)
                rest = [delta async for delta in deltas]
            assert len(rest) == 1
            assert len(first.text + rest[0].text) == 100
            assert rest[0].logprobs is not None
            assert len(rest[0].logprobs) == len(rest[0].token_ids)

    run(test())


def test_merged_outputs_keep_the_prompts_share_of_the_first_and_the_end_of_the_last() -> None:
    first = SequenceOutput("r", 0, [1], [TokenLogprob(1, -1.0)], prompt_logprobs=[None], num_cached_tokens=7)
    other = SequenceOutput("r", 1, [5], [TokenLogprob(5, -5.0)])
    last = SequenceOutput("r", 0, [2, 3], [TokenLogprob(2, -2.0), TokenLogprob(3, -3.0)], "stop", 3)
    joined, alone = merged([first, other, last])
    assert alone == other
    assert joined == SequenceOutput(
        "r",
        0,
        [1, 2, 3],
        [TokenLogprob(1, -1.0), TokenLogprob(2, -2.0), TokenLogprob(3, -3.0)],
        "stop",
        3,
        prompt_logprobs=[None],
        num_cached_tokens=7,
    )


def test_a_request_that_can_never_be_served_is_refused_and_disturbs_no_other() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            other = asyncio.create_task(answer(llm, "other", list(b"abc"), SamplingParams(max_tokens=100)))
            with pytest.raises(InvalidRequest, match="token id 256; this model's ids are 0 to 255"):  # by the front
                await answer(llm, "r", [256], LONG)
            with pytest.raises(InvalidRequest, match="501 tokens never fits") as refusal:  # by the engine
                await answer(llm, "r", [1] * (MAX_PROMPT_LEN + 1), SamplingParams(n=2))
            assert refusal.value.param == "prompt"
            with pytest.raises(InvalidRequest, match="logprobs must be at most 5"):
                llm.check([1], SamplingParams(logprobs=6))
            assert len(text_of(await other)) == 100

    run(test())


def test_a_request_that_the_engine_gives_up_ends_with_an_error_of_the_server() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            other = asyncio.create_task(answer(llm, "other", list(b"abc"), SamplingParams(max_tokens=100)))
            with pytest.raises(InternalError, match="gave up"):
                await answer(llm, "r", [HOPELESS], LONG)
            assert len(text_of(await other)) == 100

    run(test())


def test_two_live_requests_cannot_have_one_id() -> None:
    async def test() -> None:
        async with fake_llm() as llm, aclosing(llm.generate("r", list(b"abc"), LONG)) as deltas:
            await anext(deltas)
            with pytest.raises(InvalidRequest, match="'r' is being served"):
                await answer(llm, "r", list(b"abc"), LONG)
            assert (await anext(deltas)).text

    run(test())


def test_closing_ends_the_process_its_requests_and_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def test() -> None:
        async with fake_llm() as llm:
            (folder,) = tmp_path.iterdir()
            assert folder.stat().st_mode & 0o777 == 0o700
            request = asyncio.create_task(answer(llm, "r", list(b"abc"), LONG))
            await asyncio.sleep(0.02)
            await llm.close()
            with pytest.raises(EngineDead, match="shut down"):
                await request
        assert not list(tmp_path.iterdir())

    before = psutil.Process().children()  # of other tests
    run(test())
    assert psutil.Process().children() == before


def test_signals_for_the_front_do_not_reach_the_engine() -> None:
    async def test() -> None:
        engine = await EngineProcess.start(COMMAND)
        engine.load(EngineConfig(model="fake"))
        await engine.ready()
        os.kill(engine.pid, signal.SIGINT)
        os.kill(engine.pid, signal.SIGTERM)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.died(), 0.2)
        await engine.close()

    run(test())


def test_the_engine_ends_and_removes_its_folder_when_its_front_is_killed(tmp_path: Path) -> None:
    front = """
import asyncio, os, signal
from polyserve.config import EngineConfig
from polyserve.service.engine_process import EngineProcess
from support.fake_engine import COMMAND
async def main():
    engine = await EngineProcess.start(COMMAND)
    engine.load(EngineConfig(model="fake"))
    await engine.ready()
    print(engine.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", front], env=environment, stdout=subprocess.PIPE, check=False)
    assert result.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 2.0
    while Path(f"/proc/{int(result.stdout)}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{int(result.stdout)}").exists()
    assert not list(tmp_path.iterdir())


def test_text_work_runs_beside_the_loop() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            threads = []
            encode = llm.tokenizer.encode

            def watched(text: str, *, add_special_tokens: bool = True) -> list[int]:
                threads.append(threading.current_thread())
                return encode(text, add_special_tokens=add_special_tokens)

            llm.tokenizer.encode = watched  # type: ignore[method-assign]
            assert await llm.encode("né") == list("né".encode())
            assert threading.main_thread() not in threads
            assert await llm.render_chat([{"role": "user", "content": "hello"}]) == "hello;"
            with pytest.raises(InvalidRequest, match="surrogate"):
                await llm.encode("\ud800")

    run(test())


def test_a_model_that_cannot_be_loaded_is_reported_in_the_engines_words() -> None:
    async def test() -> None:
        engine = await EngineProcess.start(COMMAND)
        engine.load(EngineConfig(model="damaged"))
        with pytest.raises(ModelLoadError, match="damaged: there is nothing in it"):
            await engine.ready()
        assert (await engine.died()).message == "the engine process ended (exit code 2)"
        await engine.close()

    run(test())


def test_an_engine_that_fails_while_loading_is_reported_dead(capfd: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        engine = await EngineProcess.start(COMMAND)
        engine.load(EngineConfig(model="broken"))
        with pytest.raises(EngineDead, match="exit code 1"):
            await engine.ready()
        await engine.close()

    run(test())
    assert "a fault of ours" in capfd.readouterr().err


def test_an_engine_that_is_still_loading_can_be_closed() -> None:
    async def test() -> None:
        engine = await EngineProcess.start(COMMAND)
        engine.load(EngineConfig(model="slow"))
        loading = asyncio.create_task(engine.ready())
        await asyncio.sleep(0.3)
        began = time.monotonic()
        loading.cancel()
        await engine.close()
        assert time.monotonic() - began < 1.0

    run(test())


def test_an_embedding_is_what_the_engine_pooled_at_unit_length() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            assert await llm.embed("e", [3, 4], pooling="mean") == [0.6, 0.8]
            with pytest.raises(InternalError, match="gave up"):
                await llm.embed("e", [HOPELESS, 4], pooling="last")
            with pytest.raises(InvalidRequest, match="at least one token"):
                await llm.embed("e", [], pooling="last")

    run(test())


def test_an_embedding_that_nobody_waits_for_is_aborted() -> None:
    async def test() -> None:
        async with fake_llm() as llm:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(llm.embed("e", [3, 4], pooling="mean"), 0)
            assert await llm.embed("e", [3, 4], pooling="mean") == [0.6, 0.8]

    run(test())
