"""Nobody passes without a key, except to what is public. Who called is in the request's state as `tenant`."""

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from polyserve.api.access import Access, http_access
from polyserve.api.http.errors import error_response
from polyserve.api.keys import KeyRing
from polyserve.errors import PolyServeError


class Authentication:
    """ASGI middleware around the whole application, so that routes that do not exist are covered as well."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = http_access(scope["path"]) if scope["type"] == "http" else Access.PUBLIC
        if access != Access.PUBLIC:
            header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            try:
                tenant = self._keys.authenticate(header.decode("latin-1"), admin=access == Access.ADMIN)
            except PolyServeError as error:
                await error_response(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)


def tenant_of(request: Request) -> str | None:
    """The name of the key that the request came with; None where keys are not required."""
    tenant: str | None = request.state.tenant
    return tenant
