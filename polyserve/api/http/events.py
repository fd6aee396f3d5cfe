"""Server-sent events, and the end of the work when its client goes away.

    data: {"id": ..., "choices": [...]}     one chunk, or one {"error": ...} after which nothing follows
    data: [DONE]                            the end of an answer that is complete
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

from polyserve.api.frontend import Usage
from polyserve.api.http.envelope import usage_object
from polyserve.api.http.errors import error_object
from polyserve.api.http.schemas import UsageChunks
from polyserve.errors import Cancelled, InternalError, PolyServeError
from polyserve.log import get_logger

log = get_logger(__name__)

DONE = b"data: [DONE]\n\n"

Result = TypeVar("Result")


def event(value: object) -> bytes:
    """One event that carries a JSON value."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


class Chunks:
    """Writes the chunks of one answer: what they have in common is serialised once.

    usage: counted by the caller while the answer grows; `shown` says where the stream tells it.
    """

    def __init__(self, common: Mapping[str, object], usage: Usage, shown: UsageChunks) -> None:
        self._head = b"data: " + orjson.dumps(common)[:-1] + b',"choices":['
        self._usage = usage
        self._shown = shown

    def choice(self, choice: Mapping[str, object], *, beside: Mapping[str, object] | None = None) -> bytes:
        """A chunk of one choice's object, with further members `beside` the choices."""
        more = b"," + orjson.dumps(beside)[1:-1] if beside else b""
        return self._head + orjson.dumps(choice) + b"]" + more + self._tail()

    def end(self) -> bytes:
        """What follows the last choice: a chunk of none with the usage, where that is asked for, and the last event."""
        return self._head + b"]" + self._tail(tells=True) + DONE if self._shown.last else DONE

    def _tail(self, *, tells: bool = False) -> bytes:
        if tells or self._shown.each:
            return b',"usage":' + orjson.dumps(usage_object(self._usage)) + b"}\n\n"
        return b',"usage":null}\n\n' if self._shown.last else b"}\n\n"


class EventStream(Response):
    """Sends events as they are made. An error before the first is an ordinary error response, later the last event."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        with suppress(Cancelled):  # nobody is left to be told
            await while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        started = False
        try:
            async with aclosing(self._events) as events:
                async for data in events:
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except PolyServeError as error:
            if not started:
                raise
            await send({"type": "http.response.body", "body": event(error_object(error)), "more_body": True})
        except Exception:
            if not started:
                raise
            log.exception("a stream ended with a fault of the server")
            fault = InternalError("the server met an internal error")
            await send({"type": "http.response.body", "body": event(error_object(fault)), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, but stop it at once when the client goes away. Raises Cancelled then."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Cancelled("the client went away before the answer was complete")
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
