"""Every error as OpenAI's error object, {"error": {"message", "type", "param", "code"}}, with its status."""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from polyserve.api.frontend import shortened
from polyserve.api.http.body import json_response
from polyserve.api.http.sentences import sentence
from polyserve.errors import InternalError, PolyServeError, Unauthenticated, status_of
from polyserve.log import get_logger

log = get_logger(__name__)

METHODS = ("GET", "POST", "DELETE")  # of all routes


def error_object(error: PolyServeError) -> dict[str, object]:
    """What a client reads."""
    return error_body(error.message, status_of(error).openai_type, error.param, error.code)


def error_response(error: PolyServeError) -> Response:
    """The same as a whole answer."""
    headers = {"www-authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return json_response(error_object(error), status=status_of(error).http, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Let every error of an endpoint, of reading a request and of routing leave in this shape."""
    app.add_exception_handler(PolyServeError, _handle_own)
    app.add_exception_handler(RequestValidationError, _handle_validation)
    app.add_exception_handler(HTTPException, _handle_http)
    app.add_exception_handler(Exception, _handle_fault)


class ErrorDetail(BaseModel):
    """`message` is for people, `param` names the field at fault, `code` is a stable word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """How every error looks; here only for the description of the API."""

    error: ErrorDetail


def error_body(message: str, type_: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


async def _handle_own(_: Request, error: Exception) -> Response:
    assert isinstance(error, PolyServeError)
    return error_response(error)


async def _handle_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):  # left unread, because it is not announced as JSON
        given = request.headers.get("content-type")
        came = "none" if given is None else shortened(given)
        message = f"the Content-Type must be 'application/json', got {came}"
        return json_response(error_body(message, "invalid_request_error"), status=415)
    return await _handle_own(request, sentence(error.errors()[0]))


async def _handle_http(request: Request, error: Exception) -> Response:
    """What Starlette refuses itself: unknown routes, wrong methods, bodies that are too large or not JSON."""
    assert isinstance(error, HTTPException)
    message, kind, headers = str(error.detail), "invalid_request_error", dict(error.headers or {})
    if error.status_code == 404:
        message, kind = f"there is no {shortened(request.url.path)} here", "not_found_error"
    elif error.status_code == 405:
        other = headers["Allow"] = ", ".join(_methods(request))
        message = f"{shortened(request.url.path)} does not take {request.method}, but {other}"
    return json_response(error_body(message, kind), status=error.status_code, headers=headers)


def _methods(request: Request) -> list[str]:
    """What the path takes. The router itself names those of one route, where several share a path."""

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in METHODS if taken(method)]


async def _handle_fault(_: Request, error: Exception) -> Response:
    log.error("a request met a fault of the server", exc_info=error)
    return await _handle_own(_, InternalError("the server met an internal error"))
