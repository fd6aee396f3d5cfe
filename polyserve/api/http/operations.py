"""GET /livez, /readyz, /health and /metrics: what those who run a server ask it."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from polyserve.api.frontend import Frontend
from polyserve.api.http.body import json_response


def operations_router(frontend: Frontend) -> APIRouter:
    """The routes of this file, for one served model."""
    router = APIRouter()

    @router.get("/livez")
    async def livez() -> Response:
        """200 while this process answers at all: one that does not should be started again."""
        return json_response({"status": "ok"})

    @router.get("/readyz")
    @router.get("/health")
    async def readyz() -> Response:
        """200 while requests would be answered; 503 when the engine does not answer or the server ends."""
        frontend.check_ready()
        return json_response({"status": "ok"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(frontend.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router
