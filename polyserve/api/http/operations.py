"""GET /health and GET /metrics: what those who run a server ask it."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from polyserve.api.frontend import Frontend
from polyserve.api.http.body import json_response


def operations_router(frontend: Frontend) -> APIRouter:
    """The routes of this file, for one served model."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        """200 while requests can be answered, 503 when the engine is dead."""
        frontend.check_alive()
        return json_response({"status": "ok"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(frontend.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router
