"""Texts to vectors, for both protocols: the pooled final hidden states, or their first components, at unit length."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyserve.api.frontend import Frontend, Prompt, naming
from polyserve.errors import InvalidRequest
from polyserve.pooling import Pooling
from polyserve.request import POOLED

Vector = NDArray[np.float32]

DEFAULT_POOLING: Pooling = "last"  # it alone has seen the whole text


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input, and the tokens that all inputs had."""

    vectors: list[Vector]
    prompt_tokens: int


async def embed(
    frontend: Frontend,
    request_id: str,
    inputs: Sequence[str | Sequence[int]],
    *,
    pooling: Pooling | None = None,
    dimensions: int | None = None,
) -> Embeddings:
    """The vectors of texts or token ids. Every input is checked before any is computed. Raises InvalidRequest.

    dimensions: how many components to keep, of which the vector then has unit length again.
    """
    arrived = time.monotonic()
    if dimensions is not None and dimensions < 1:
        raise InvalidRequest(f"dimensions must be at least 1, got {dimensions}", param="dimensions")
    with naming({"prompt": "input"}):
        frontend.check_inputs(inputs, POOLED)
        prompts = [await frontend.read_prompt(one) for one in inputs]
        for prompt in prompts:
            frontend.llm.check(prompt.token_ids, POOLED)

    async def compute(index: int, prompt: Prompt) -> Vector:
        with frontend.metrics.request(arrived, len(prompt.token_ids), 0):
            pooled = await frontend.llm.embed(
                f"{request_id}-{index}", prompt.token_ids, pooling=pooling or DEFAULT_POOLING
            )
        return _shortened(np.asarray(pooled, np.float32), dimensions)

    tasks = [asyncio.create_task(compute(index, prompt)) for index, prompt in enumerate(prompts)]
    try:
        vectors = await asyncio.gather(*tasks)
    finally:  # with the first error, or when the client leaves, the others are of no use
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return Embeddings(vectors, sum(len(prompt.token_ids) for prompt in prompts))


def _shortened(vector: Vector, dimensions: int | None) -> Vector:
    if dimensions is not None and dimensions > len(vector):
        message = f"dimensions must be at most {len(vector)}, the model's own, got {dimensions}"
        raise InvalidRequest(message, param="dimensions")
    kept = vector[:dimensions]
    length = float(np.linalg.norm(kept))
    return kept / np.float32(length) if length else kept
