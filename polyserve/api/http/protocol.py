"""uvicorn's HTTP protocol, with an end to what a client may send and to how long it may take.

A connection     one too many: 503.  Nothing sent between requests: uvicorn's own keep-alive timeout
A request        headers too many, too long or too slow: 431, 408;  body too slow: 408.  What is no HTTP: 400
An answer        a client that reads less than MIN_READ_BYTES_PER_S is cut off; the request then ends as if it had left
Sizes are counted as bytes arrive, also of what has no end yet: a header line, a trailer, the framing of chunks. What
one read brings (256 KiB) is all that can be held beyond them. How large a body is, `body.py` counts.
"""

import asyncio
import socket
import struct
from typing import Any

import orjson
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from polyserve.api.http.errors import error_body
from polyserve.api.limits import Limits

MIN_READ_BYTES_PER_S = 1024
# What the system holds for a client that does not read; on its own, Linux takes over 2 MB for a near one.
SEND_BUFFER_BYTES = 2**16
# A chunk of one byte needs six: whoever sends its body in the smallest chunks does not need all of the largest body.
FRAMING = 2


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._refusal = 400, "this is not an HTTP request"
        self._reading: asyncio.TimerHandle | None = None  # runs while a request is awaited
        self._writing: asyncio.TimerHandle | None = None  # runs while the client does not read
        self._in_head = True
        self._began = False  # a request began in the data that came last
        self._num_bytes = 0  # of this request, in all data after that in which it began
        self._num_header_bytes = 0
        self._num_headers = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._socket_option(socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(
                503, f"this server takes {self._limits.max_connections} connections at a time; try again later"
            )
        else:
            self._expect(self._limits.header_timeout_s, "headers")

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._reading)
        _cancel(self._writing)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._began = False
        super().data_received(data)
        if self._began or self.transport.is_closing():
            return
        self._num_bytes += len(data)
        limits = self._limits
        if self._in_head and self._num_bytes > limits.max_header_bytes:
            self._refuse(*self._headers_too_long())
        elif self._num_bytes > limits.max_header_bytes + FRAMING * limits.max_body_bytes:
            self._refuse(413, f"the request body must be at most {limits.max_body_bytes} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._began = True
        self._num_bytes = self._num_header_bytes = self._num_headers = 0
        if self._reading is None:
            self._expect(self._limits.header_timeout_s, "headers")

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._num_headers += 1
        self._count_header(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._expect(self._limits.body_timeout_s, "body")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        _cancel(self._reading)
        self._reading = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's words
        self._refuse(*self._refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        _cancel(self._writing)
        super().resume_writing()

    def _count_header(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > self._limits.max_header_bytes:
            self._refusal = self._headers_too_long()
            raise ValueError  # which ends the parsing
        if self._num_headers > self._limits.max_headers:
            self._refusal = 431, f"a request has at most {self._limits.max_headers} headers here"
            raise ValueError

    def _headers_too_long(self) -> tuple[int, str]:
        return 431, f"the request's line and headers must be at most {self._limits.max_header_bytes} bytes"

    def _expect(self, timeout_s: float, part: str) -> None:
        _cancel(self._reading)
        self._reading = self.loop.call_later(timeout_s, self._too_slow, timeout_s, part)

    def _too_slow(self, timeout_s: float, part: str) -> None:
        if self.flow.read_paused:  # it is this server that does not go on
            self._expect(timeout_s, part)
        elif self.scope is None:
            self.transport.close()  # nothing was asked, so nothing is answered
        else:
            self._refuse(408, f"the request's {part} did not arrive within {timeout_s:g} s")

    def _watch_reader(self, num_left: int) -> None:
        timeout_s = self._limits.write_timeout_s
        self._writing = self.loop.call_later(
            timeout_s, self._look_at_reader, num_left - MIN_READ_BYTES_PER_S * timeout_s
        )

    def _look_at_reader(self, most_left: float) -> None:
        """Nothing is added while writing is paused, so that what is left says how much was read."""
        num_left = self.transport.get_write_buffer_size()
        if num_left > max(most_left, 0):
            self._socket_option(socket.SO_LINGER, struct.pack("ii", 1, 0))  # the system's buffer is thrown away, too
            self.transport.abort()
        else:
            self._watch_reader(num_left)

    def _socket_option(self, name: int, value: int | bytes) -> None:
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, name, value)

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error and close. An answer that has begun is only cut."""
        _cancel(self._reading)
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            kind = "service_unavailable_error" if status == 503 else "invalid_request_error"
            body = orjson.dumps(error_body(message, kind))
            headers = b"".join(b"%s: %s\r\n" % header for header in self.server_state.default_headers)
            headers += b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + headers + body)
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
