"""A server that can take in nothing more says so at the door: no body is read for that, nothing routed or checked.

Under overload most requests end here, and what they cost is taken from those that are answered. What a request needs is
known, and checked again, when it was read (`Frontend`).
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from polyserve.api.frontend import Frontend
from polyserve.api.http.errors import error_response
from polyserve.errors import PolyServeError

PATHS = frozenset(f"/v1/{name}" for name in ("completions", "chat/completions", "embeddings", "score"))  # of POST


class Room:
    """ASGI middleware around the routes that ask the engine for something."""

    def __init__(self, app: ASGIApp, frontend: Frontend) -> None:
        self._app = app
        self._frontend = frontend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PATHS:
            try:
                self._frontend.check_room()
            except PolyServeError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
