"""An AsyncLLM, its supervisor and an engine process without a model (`fake_engine`), and how to ask it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager

from polyserve.config import EngineConfig
from polyserve.sampling_params import SamplingParams
from polyserve.service.async_llm import AsyncLLM, ChoiceDelta
from polyserve.service.engine_process import EngineProcess
from polyserve.service.supervisor import Supervisor
from support.fake_engine import COMMAND
from support.piece_tokenizer import byte_tokenizer

LONG = SamplingParams(max_tokens=900)
TEMPLATE = "{% for message in messages %}{{ message.content }};{% endfor %}"


def run(test: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


@asynccontextmanager
async def fake_llm(*, step_timeout_s: float = 60.0, fork_server: bool = False) -> AsyncIterator[AsyncLLM]:
    config = EngineConfig(model="fake")
    process = await EngineProcess.start(COMMAND)
    process.load(config)
    engine = Supervisor(process, config, COMMAND, step_timeout_s=step_timeout_s, fork_server=fork_server)
    ready = await engine.ready()
    llm = AsyncLLM(engine, byte_tokenizer(chat_template=TEMPLATE), ready, max_logprobs=5)
    try:
        yield llm
    finally:
        await llm.close()


async def restarted(llm: AsyncLLM, num_restarts: int) -> None:
    """Wait until the engine was started again so many times, and is there."""
    while llm.num_restarts < num_restarts or not llm.progressing:
        await asyncio.sleep(0.005)


async def answer(llm: AsyncLLM, request_id: str, prompt: Sequence[int], params: SamplingParams) -> list[ChoiceDelta]:
    return [delta async for delta in llm.generate(request_id, prompt, params)]


def text_of(deltas: list[ChoiceDelta], choice: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.choice == choice)
