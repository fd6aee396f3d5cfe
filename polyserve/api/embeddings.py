"""Texts to vectors, for both protocols: the pooled final hidden states, or their first components, at unit length."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyserve.api.frontend import Admitted, Frontend
from polyserve.errors import InvalidRequest
from polyserve.pooling import Pooling

Vector = NDArray[np.float32]

DEFAULT_POOLING: Pooling = "last"  # it alone has seen the whole text


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input, and the tokens that all inputs had."""

    vectors: list[Vector]
    prompt_tokens: int


async def embed(
    frontend: Frontend, request: Admitted, *, pooling: Pooling | None = None, dimensions: int | None = None
) -> Embeddings:
    """The vectors of an admitted request's prompts. Raises InvalidRequest.

    dimensions: how many components to keep, of which the vector then has unit length again.
    """
    size = frontend.llm.hidden_size
    if dimensions is not None and not 1 <= dimensions <= size:
        message = f"dimensions must be at least 1 and at most {size}, the model's own, got {dimensions}"
        raise InvalidRequest(message, param="dimensions")
    pooled = await frontend.embed(request, pooling or DEFAULT_POOLING)
    vectors = [_shortened(np.asarray(vector, np.float32), dimensions) for vector in pooled]
    return Embeddings(vectors, sum(len(prompt.token_ids) for prompt in request.prompts))


def _shortened(vector: Vector, dimensions: int | None) -> Vector:
    kept = vector[:dimensions]
    length = float(np.linalg.norm(kept))
    return kept / np.float32(length) if length else kept
