"""POST /v1/score: how likely the model finds given text, token by token; our own."""

import uuid

from fastapi import APIRouter, Request, Response

from polyserve.api.frontend import Frontend
from polyserve.api.http.answers import ScoreList, answers
from polyserve.api.http.authentication import tenant_of
from polyserve.api.http.body import JsonRoute, json_response
from polyserve.api.http.deadline import timeout_of
from polyserve.api.http.events import while_connected
from polyserve.api.http.fields import Body
from polyserve.scoring import Score


class ScoreInput(Body):
    context: str = ""
    """What stands before; left out: nothing, and the whole text is scored."""
    continuation: str
    """What is scored."""


class ScoreBody(Body):
    """POST /v1/score."""

    model: str | None = None
    """One of the served names."""
    inputs: list[ScoreInput]
    """Texts, each scored by itself."""


def score_router(frontend: Frontend) -> APIRouter:
    """The route of this file, for one served model."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/score", responses=answers(ScoreList))
    async def create_scores(body: ScoreBody, request: Request) -> Response:
        frontend.check_model(body.model)
        pairs = [(one.context, one.continuation) for one in body.inputs]
        admitted, texts = await frontend.admit_scores(
            f"score-{uuid.uuid4().hex}", pairs, tenant=tenant_of(request), timeout_s=timeout_of(request)
        )
        scores = await while_connected(request.receive, frontend.score(admitted, texts))
        num_tokens = sum(len(text.prompt_ids) for text in texts)
        return json_response(
            {
                "object": "list",
                "data": [_score(index, score) for index, score in enumerate(scores)],
                "model": frontend.model_name,
                "system_fingerprint": frontend.llm.numerics_id,
                "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            }
        )

    return router


def _score(index: int, score: Score) -> dict[str, object]:
    return {
        "object": "score",
        "index": index,
        "logprob": score.logprob,
        "is_greedy": score.is_greedy,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "num_bytes": score.num_bytes,
        "token_ids": score.token_ids,
        "token_logprobs": score.logprobs,
    }
