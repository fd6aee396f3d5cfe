"""The same for gRPC: every method needs a key but those that are public, reflection included."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc

from polyserve.api.access import Access, rpc_access
from polyserve.api.grpc.errors import abort
from polyserve.api.keys import KeyRing
from polyserve.errors import PolyServeError

Metadata = Iterable[tuple[str, str | bytes]]


class Authentication(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Asks before a method is looked up, so that methods that do not exist are covered as well."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        access = rpc_access(handler_call_details.method)
        if access != Access.PUBLIC:
            authorization = authorization_of(handler_call_details.invocation_metadata)
            try:
                self._keys.authenticate(authorization, admin=access == Access.ADMIN)
            except PolyServeError as error:
                return _refusal(error)
        return await continuation(handler_call_details)


def authorization_of(metadata: Metadata) -> str | None:
    """The call's `authorization`, which HTTP has as a header."""
    return metadata_value(metadata, "authorization")


def metadata_value(metadata: Metadata, name: str) -> str | None:
    """The first value of that name."""
    value = next((value for other, value in metadata if other == name), None)
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _refusal(error: PolyServeError) -> grpc.RpcMethodHandler:
    """A handler that reads nothing of the call, whatever its kind, and ends it."""

    async def refuse(_: Any, context: grpc.aio.ServicerContext) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
