"""JSON bodies in and out: read through orjson up to a size, written as UTF-8.

orjson refuses what is not JSON though Python's own reader takes it (NaN, half of a surrogate pair), and is fast enough
to read a large body without holding up the event loop.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from polyserve.api.limits import Limits


class JsonRequest(Request):
    """A request whose body is JSON, within the limits that the application holds."""

    @property
    def _limits(self) -> Limits:
        limits: Limits = self.app.state.limits
        return limits

    async def body(self) -> bytes:
        """The whole body. Counts what comes, since a length that is announced can be wrong or missing."""
        if not hasattr(self, "_body"):
            max_bytes = self._limits.max_body_bytes
            announced = self.headers.get("content-length", "0")
            if announced.isdecimal() and int(announced) > max_bytes:
                raise _too_large(max_bytes)
            chunks, num_bytes = [], 0
            async for chunk in self.stream():
                chunks.append(chunk)
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise _too_large(max_bytes)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        """The body's value. Raises orjson.JSONDecodeError, which is json.JSONDecodeError."""
        body, most = await self.body(), self._limits.max_json_depth
        value = orjson.loads(body)
        # Few brackets cannot be deep; that spares a long list of token ids the walk.
        if body.count(b"[") + body.count(b"{") > most and _deeper_than(value, most):
            raise HTTPException(400, f"the request body has more than {most} lists and objects inside each other")
        return value


class JsonRoute(APIRoute):
    """A route whose endpoint gets a JsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


def json_response(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer of one JSON value."""
    return Response(orjson.dumps(value), status_code=status, headers=headers, media_type="application/json")


def _deeper_than(value: Any, most: int) -> bool:
    """Whether more than `most` lists and objects lie inside each other."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return False
    return True


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the request body must be at most {max_bytes} bytes")
