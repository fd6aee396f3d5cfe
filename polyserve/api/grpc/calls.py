"""What all RPCs have in common: how a call begins, and how its errors end it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from google.protobuf.message import Message

from polyserve.api.frontend import Frontend
from polyserve.api.grpc.authentication import authorization_of, metadata_value
from polyserve.api.grpc.convert import refuse_unknown
from polyserve.api.grpc.errors import errors_as_status
from polyserve.api.keys import KeyRing
from polyserve.api.request_id import HEADER, request_id_of
from polyserve.log import name_request
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeServicer


class Calls(PolyServeServicer):
    """One served model over gRPC."""

    def __init__(self, frontend: Frontend, keys: KeyRing) -> None:
        self._frontend = frontend
        self._keys = keys

    def _tenant(self, context: grpc.aio.ServicerContext) -> str | None:
        return self._keys.authenticate(authorization_of(context.invocation_metadata()))

    @asynccontextmanager
    async def _call(
        self, request: Message, context: grpc.aio.ServicerContext, *, model: str = "", compresses: bool = False
    ) -> AsyncIterator[None]:
        """Around everything that a method does. The call carries its id back, and is a part of its caller's trace.

        model: the name that the client gave.  compresses: the answer can be large, and its client can wait for it to be
        packed, if it takes gzip.
        """
        metadata = context.invocation_metadata()
        request_id = request_id_of(metadata_value(metadata, HEADER))
        context.set_trailing_metadata(((HEADER, request_id),))
        name_request(request_id)
        if self._frontend.tracing is not None:
            self._frontend.tracing.continue_from({key: value for key, value in metadata if isinstance(value, str)})
        async with errors_as_status(context):
            refuse_unknown(request)
            self._frontend.check_model(model or None)
            if compresses:
                context.set_compression(grpc.Compression.Gzip)
                await context.send_initial_metadata(())  # which says so; grpc.aio itself forgets to
            yield
