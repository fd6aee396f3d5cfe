"""AsyncLLM with the real engine in its own process, against LLM with the same model in this one."""

import asyncio
import math
from pathlib import Path

import pytest

from polyserve.config import EngineConfig
from polyserve.errors import ModelLoadError
from polyserve.llm import LLM
from polyserve.output import RequestOutput
from polyserve.pooling import Pooling
from polyserve.sampling_params import SamplingParams
from polyserve.service.async_llm import AsyncLLM, ChoiceDelta
from support.checkpoints import make_checkpoint

PROMPTS = [
    "Once upon a time",
    "北京是",
    "Die Hauptstadt von Deutschland ist Berlin, und",
    "La casa es",
    "Der",
    "The dog",
]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=20, logprobs=3),
    SamplingParams(n=3, seed=5, max_tokens=20, prompt_logprobs=2),
    SamplingParams(seed=-1, temperature=0.7, top_p=0.9, repetition_penalty=1.2, max_tokens=20, stop=["e", "的"]),
    SamplingParams(temperature=0.0, min_tokens=20, max_tokens=None, include_stop_str_in_output=True, stop=["a"]),
    SamplingParams(use_beam_search=True, n=2, best_of=4, max_tokens=20, logprobs=1, early_stopping="never"),
    SamplingParams(n=2, best_of=5, seed=3, max_tokens=20, stop=["e"], prompt_logprobs=0),
]


async def answers(llm: AsyncLLM, prompts: list[str], params: list[SamplingParams]) -> list[list[ChoiceDelta]]:
    async def answer(index: int) -> list[ChoiceDelta]:
        prompt_ids = await llm.encode(prompts[index])
        return [delta async for delta in llm.generate(f"r{index}", prompt_ids, params[index])]

    return await asyncio.gather(*(answer(index) for index in range(len(prompts))))


async def served(config: EngineConfig, prompts: list[str], params: list[SamplingParams]) -> list[list[ChoiceDelta]]:
    """What a new engine process answers."""
    llm = await AsyncLLM.start(config)
    try:
        return await answers(llm, prompts, params)
    finally:
        await llm.close()


def assert_equal(deltas: list[ChoiceDelta], output: RequestOutput) -> None:
    for answer in output.outputs:
        of_choice = [delta for delta in deltas if delta.choice == answer.index]
        assert [token_id for delta in of_choice for token_id in delta.token_ids] == answer.token_ids
        assert "".join(delta.text for delta in of_choice) == answer.text
        assert of_choice[-1].finish_reason == answer.finish_reason
        assert of_choice[-1].stop_reason == answer.stop_reason
        if answer.logprobs is not None:
            assert [entry for delta in of_choice for entry in delta.logprobs or ()] == answer.logprobs
    assert next((d.prompt_logprobs for d in deltas if d.prompt_logprobs), None) == output.prompt_logprobs


def test_streams_from_the_engine_process_are_what_llm_answers_in_this_one(tmp_path: Path) -> None:
    config = EngineConfig(model=str(make_checkpoint(tmp_path, "llama")), threads=1)
    outputs = LLM(config=config).generate(PROMPTS, PARAMS)
    streams = asyncio.run(served(config, PROMPTS, PARAMS))
    for deltas, output in zip(streams, outputs, strict=True):
        assert_equal(deltas, output)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_from_the_engine_process_are_those_of_llm(tmp_path: Path, pooling: Pooling) -> None:
    config = EngineConfig(model=str(make_checkpoint(tmp_path, "llama")), threads=1)

    async def embedded() -> list[list[float]]:
        llm = await AsyncLLM.start(config)
        try:
            prompts = [await llm.encode(prompt) for prompt in PROMPTS]
            return await asyncio.gather(*(llm.embed(str(i), ids, pooling=pooling) for i, ids in enumerate(prompts)))
        finally:
            await llm.close()

    vectors = LLM(config=config).embed(PROMPTS, pooling=pooling)
    assert asyncio.run(embedded()) == vectors
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1.0] * len(PROMPTS))


def test_a_damaged_checkpoint_ends_the_start_with_one_clear_line(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors") as error:
        asyncio.run(served(EngineConfig(model=str(folder)), [], []))
    assert "\n" not in error.value.message


@pytest.mark.model_package
def test_smollm2_streams_the_capital_of_france(smollm2_file: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=3)
    (deltas,) = asyncio.run(
        served(EngineConfig(model=str(smollm2_file), threads=1), ["The capital of France is"], [params])
    )
    assert sum(len(delta.token_ids) for delta in deltas) == 3  # those that come while the front is busy, in one
    assert "".join(delta.text for delta in deltas) == " Paris.\n"
