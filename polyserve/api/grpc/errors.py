"""Errors as gRPC tells them: the status of the table in `polyserve.errors`, HTTP's message, and typed details.

google.rpc.ErrorInfo    reason: HTTP's `code`, else its `type`, in capitals; `type`, `param` and `code` as metadata
google.rpc.BadRequest   the field at fault, where there is one
google.rpc.RetryInfo    when to try again, where that can help; also as the trailer `retry-after`, HTTP's header
Source: https://google.aip.dev/193
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from polyserve.errors import InternalError, PolyServeError, status_of
from polyserve.log import get_logger

log = get_logger(__name__)

DOMAIN = "polyserve"


async def abort(context: grpc.aio.ServicerContext, error: PolyServeError) -> None:
    """End the call with this error."""
    code = grpc.StatusCode[status_of(error).grpc]
    status = status_pb2.Status(code=code.value[0], message=error.message, details=map(_packed, details_of(error)))
    told = rpc_status.to_status(status)
    trailer = () if error.retry_after_s is None else (("retry-after", str(error.retry_after_s)),)
    await context.abort(told.code, told.details, (*context.trailing_metadata(), *told.trailing_metadata, *trailer))


def details_of(error: PolyServeError) -> list[Message]:
    """What a program can read of the error."""
    kind = status_of(error).openai_type
    known = {"type": kind, "param": error.param, "code": error.code}
    info = error_details_pb2.ErrorInfo(
        reason=(error.code or kind).upper(),
        domain=DOMAIN,
        metadata={name: value for name, value in known.items() if value is not None},
    )
    details: list[Message] = [info]
    if error.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.param, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=error.retry_after_s)))
    return details


@asynccontextmanager
async def errors_as_status(context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    """End the call with the status of whatever error the block meets. A fault of ours tells nothing."""
    try:
        yield
    except PolyServeError as error:
        await abort(context, error)
    except Exception:
        log.exception("a call met a fault of the server")
        await abort(context, InternalError("the server met an internal error"))


def _packed(detail: Message) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed
