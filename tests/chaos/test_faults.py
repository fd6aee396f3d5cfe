"""A request that crashes the engine among others, and allocations that fail: the others' answers are equal."""

import asyncio
from pathlib import Path

import pytest
import torch

from polyserve.config import EngineConfig
from polyserve.engine.block_pool import BlockPool
from polyserve.errors import InternalError
from polyserve.sampling_params import SamplingParams
from polyserve.service.async_llm import AsyncLLM
from support.engine_runs import Answers, make_engine, make_request, run
from support.poisoned_engine import COMMAND, POISON
from support.tiny_decoder import tiny_decoder

MODEL = tiny_decoder(torch.float32)
NUM_GOOD = 31


@pytest.mark.parametrize(
    "place", [31, pytest.param(0, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.slow)]
)
def test_a_request_that_crashes_the_engine_is_given_up_among_31_good_ones(tiny: Path, place: int) -> None:
    async def answer(llm: AsyncLLM, number: int, first: int) -> list[int]:
        params = SamplingParams(seed=number, max_tokens=30, ignore_eos=True)
        deltas = llm.generate(f"r{number}-{first}", [first, 9, number + 10, 11], params)
        return [token_id async for delta in deltas for token_id in delta.token_ids]

    async def test() -> None:
        llm = await AsyncLLM.start(EngineConfig(model=str(tiny), threads=1), command=COMMAND)
        try:
            undisturbed = await asyncio.gather(*(answer(llm, number, 8) for number in range(NUM_GOOD)))
            assert llm.num_restarts == 0
            asked = [answer(llm, number, 8) for number in range(NUM_GOOD)]
            asked.insert(place, answer(llm, 99, POISON))
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(results.pop(place), InternalError)
            assert results == undisturbed
            assert llm.num_restarts >= 2
        finally:
            await llm.close()

    asyncio.run(test())


def answers_without_room(monkeypatch: pytest.MonkeyPatch, failing: int) -> tuple[Answers, int]:
    """Requests for which no block is free when it is looked for the `failing`-th time. Also how often that was."""
    num_asked = 0
    num_free = BlockPool.num_free.fget  # type: ignore[attr-defined]

    def free(pool: BlockPool) -> int:
        nonlocal num_asked
        num_asked += 1
        number: int = 0 if num_asked == failing else num_free(pool)
        return number

    requests = [
        make_request(f"r{number}", [number % 3] * (20 + 7 * number), n=1 + number % 2, seed=number, max_tokens=25)
        for number in range(8)
    ]
    engine = make_engine(MODEL, max_num_batched_tokens=64)
    with monkeypatch.context() as patch:
        patch.setattr(BlockPool, "num_free", property(free))
        answers = run(engine, requests)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)
    return answers, num_asked


@pytest.mark.parametrize("each", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_whichever_allocation_of_a_block_fails_the_answers_are_equal(
    monkeypatch: pytest.MonkeyPatch, each: int
) -> None:
    undisturbed, num_asked = answers_without_room(monkeypatch, failing=0)
    assert num_asked > 200
    for failing in range(1, 201, each):
        answers, _ = answers_without_room(monkeypatch, failing)
        assert {key: answer.bits for key, answer in answers.items()} == {
            key: answer.bits for key, answer in undisturbed.items()
        }
