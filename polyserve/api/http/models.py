"""GET /v1/models and /v1/models/{model}: the one model that is served, under each of its names."""

from fastapi import APIRouter, Response

from polyserve.api.frontend import Frontend
from polyserve.api.http.answers import Model, ModelList, answers
from polyserve.api.http.body import json_response


def models_router(frontend: Frontend) -> APIRouter:
    """The routes of this file, for one served model."""
    router = APIRouter()

    @router.get("/v1/models", responses=answers(ModelList))
    async def list_models() -> Response:
        return json_response({"object": "list", "data": [model_object(name) for name in frontend.model_names]})

    @router.get("/v1/models/{model:path}", responses=answers(Model))
    async def retrieve_model(model: str) -> Response:
        frontend.check_model(model)
        return json_response(model_object(model))

    def model_object(name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": frontend.created,
            "owned_by": "polyserve",
            "max_model_len": frontend.llm.max_model_len,
        }

    return router
