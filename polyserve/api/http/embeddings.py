"""POST /v1/embeddings: vectors of texts or token ids, as numbers or as base64 of little-endian 32-bit floats."""

import base64
import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response

from polyserve.api.embeddings import Embeddings, embed
from polyserve.api.frontend import Frontend
from polyserve.api.http.answers import EmbeddingList, answers
from polyserve.api.http.authentication import tenant_of
from polyserve.api.http.body import JsonRoute, json_response
from polyserve.api.http.deadline import timeout_of
from polyserve.api.http.events import while_connected
from polyserve.api.http.fields import ACCEPTED, Body, Label, Prompts
from polyserve.pooling import Pooling


class EmbeddingsBody(Body):
    """POST /v1/embeddings."""

    model: str | None = None
    """One of the served names."""
    input: Prompts
    """A text, its token ids, or a list of either: each gets a vector."""
    encoding_format: Literal["float", "base64"] | None = None
    """Numbers, the default, or base64 of little-endian 32-bit floats: the same values."""
    dimensions: int | None = None
    """Keep this many components, at unit length again; default: all of the model's."""
    pooling: Pooling | None = None
    """How final hidden states become one vector: the `last`, the default, or the `mean` over all tokens; our own."""
    user: Annotated[Label | None, ACCEPTED] = None


def embeddings_router(frontend: Frontend) -> APIRouter:
    """The route of this file, for one served model."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/embeddings", responses=answers(EmbeddingList))
    async def create_embeddings(body: EmbeddingsBody, request: Request) -> Response:
        frontend.check_model(body.model)
        admitted = await frontend.admit_inputs(
            f"embd-{uuid.uuid4().hex}", body.input, tenant=tenant_of(request), timeout_s=timeout_of(request)
        )
        work = embed(frontend, admitted, pooling=body.pooling, dimensions=body.dimensions)
        embeddings = await while_connected(request.receive, work)
        return json_response(_list(frontend, embeddings, as_base64=body.encoding_format == "base64"))

    return router


def _list(frontend: Frontend, embeddings: Embeddings, *, as_base64: bool) -> dict[str, object]:
    data: list[dict[str, object]] = []
    for index, vector in enumerate(embeddings.vectors):
        value = base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    num_tokens = embeddings.prompt_tokens
    return {
        "object": "list",
        "data": data,
        "model": frontend.model_name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
