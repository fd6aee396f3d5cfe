"""GET /v1/models: the one model that is served."""

from fastapi import APIRouter, Response

from polyserve.api.frontend import Frontend
from polyserve.api.http.body import json_response


def models_router(frontend: Frontend) -> APIRouter:
    """The route of this file, for one served model."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> Response:
        model = {
            "id": frontend.model_name,
            "object": "model",
            "created": frontend.created,
            "owned_by": "polyserve",
            "max_model_len": frontend.llm.max_model_len,
        }
        return json_response({"object": "list", "data": [model]})

    return router
