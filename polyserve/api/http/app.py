"""The HTTP application: every route, and one shape for every error. It speaks OpenAI's API, and vLLM's beyond that."""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.telemetry import TelemetryConfig

from polyserve import __version__
from polyserve.api.frontend import Frontend
from polyserve.api.http.authentication import Authentication
from polyserve.api.http.chat import chat_router
from polyserve.api.http.completions import completions_router
from polyserve.api.http.embeddings import embeddings_router
from polyserve.api.http.errors import ErrorBody, add_error_handlers
from polyserve.api.http.head import HeadAsGet
from polyserve.api.http.models import models_router
from polyserve.api.http.operations import operations_router
from polyserve.api.http.room import Room
from polyserve.api.http.score import score_router
from polyserve.api.http.stored import stored_router
from polyserve.api.http.tokenizer import tokenizer_router
from polyserve.api.protection import Protection
from polyserve.api.tracing import Tracing

ROUTERS = (
    chat_router,
    stored_router,
    completions_router,
    embeddings_router,
    score_router,
    models_router,
    tokenizer_router,
    operations_router,
)


def create_app(frontend: Frontend, protection: Protection, *, tracing: Tracing | None = None) -> FastAPI:
    """The application for one served model. `/openapi.json` describes it."""
    app = FastAPI(
        title="PolyServe",
        version=__version__,
        docs_url=None,  # its pages would be fetched from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_telemetry(tracing),
        responses={"4XX": {"model": ErrorBody, "description": "What is wrong with the request"}},
    )
    for make_router in ROUTERS:
        app.include_router(make_router(frontend))
    add_error_handlers(app)
    app.add_middleware(Room, frontend)
    app.add_middleware(HeadAsGet)
    app.state.limits = protection.limits  # for body.py
    app.add_middleware(Authentication, protection.keys)
    if protection.cors_origins:  # before authentication: browsers ask without a key whether they may ask with one
        app.add_middleware(
            CORSMiddleware,
            allow_origins=protection.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("authorization", "content-type", "x-request-id"),
            expose_headers=("x-request-id",),
        )
    return app


def _telemetry(tracing: Tracing | None) -> TelemetryConfig:
    """A span for each request, where they are wanted; FastAPI would also log errors with what clients sent."""
    config = TelemetryConfig(tracing=False, metrics=False, logs=False, operation_spans=False, auto_configure=False)
    if tracing is not None:
        config |= {"tracing": True, "tracer_provider": tracing.provider}
    return config
