"""JSON bodies in and out: read through orjson up to a size, written as UTF-8.

orjson refuses what is not JSON though Python's own reader takes it (NaN, half of a surrogate pair), and is fast enough
to read a large body without holding up the event loop.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

MAX_BODY_BYTES = 8 * 2**20


class JsonRequest(Request):
    """A request whose body is JSON of at most MAX_BODY_BYTES."""

    async def body(self) -> bytes:
        """The whole body. Counts what comes, since a length that is announced can be wrong or missing."""
        if not hasattr(self, "_body"):
            announced = self.headers.get("content-length", "0")
            if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
                raise _too_large()
            chunks, num_bytes = [], 0
            async for chunk in self.stream():
                chunks.append(chunk)
                num_bytes += len(chunk)
                if num_bytes > MAX_BODY_BYTES:
                    raise _too_large()
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        """The body's value. Raises orjson.JSONDecodeError, which is json.JSONDecodeError."""
        return orjson.loads(await self.body())


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


def _too_large() -> HTTPException:
    return HTTPException(413, f"the request body must be at most {MAX_BODY_BYTES} bytes")
