"""Every answer, whatever became of it, carries its request's id, and with the access log leaves a line."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyserve.api.request_id import HEADER, request_id_of
from polyserve.log import get_logger, name_request

log = get_logger(__name__)

MAX_PATH = 200  # characters of it in a line


class RequestId:
    """ASGI middleware around everything, so that errors of everything else have an id as well."""

    def __init__(self, app: ASGIApp, *, access_log: bool = False) -> None:
        self._app = app
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = HEADER.encode()
        given = next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
        request_id = request_id_of(given)
        began, status = time.monotonic(), 499  # the client went away before there was one

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (name, request_id.encode())]}
            await send(message)

        name_request(request_id)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if self._access_log:
                self._note(scope, status, time.monotonic() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        tenant = scope.get("state", {}).get("tenant")
        caller = "" if tenant is None else f" for {tenant}"
        log.info("%s %s: %d in %.1f ms%s", scope["method"], scope["path"][:MAX_PATH], status, 1e3 * seconds, caller)
