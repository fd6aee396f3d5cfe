"""The servers of one model, HTTP and gRPC over one engine, from the ready line to the end.

both answer, ready line -> told to stop: not ready, new requests refused, running ones finish -> both end
                        -> no engine any more: both end at once
"""

import asyncio
import gc
import json
import math
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from polyserve.api.frontend import Frontend
from polyserve.api.grpc.server import GrpcServer
from polyserve.api.http.app import create_app
from polyserve.api.http.protocol import GuardedProtocol
from polyserve.api.http.request_id import RequestId
from polyserve.api.ports import BACKLOG, authority
from polyserve.api.protection import Protection
from polyserve.api.stop import EXIT_FAILED, EXIT_STOPPED, Stop, unless
from polyserve.errors import EngineDead, PolyServeError
from polyserve.log import get_logger

log = get_logger(__name__)

READINESS_INTERVAL_S = 0.1  # between looks at what gRPC's health service is to say
FAREWELL_S = 2.0  # how long their clients may take to read what became of them


async def serve(
    frontend: Frontend,
    http_socket: socket.socket,
    grpc_socket: socket.socket,
    stop: Stop,
    *,
    host: str,
    announce: Callable[[str], None],
    drain_timeout_s: float,
    protection: Protection | None = None,
    access_log: bool = False,
) -> int:
    """Answer over both protocols until a stop is asked for or there is no engine any more. Returns the exit code.

    announce: called once, with the ready line, when both answer.  drain_timeout_s: how long requests may take after a
    stop was asked for, unless it was asked for twice; those that still run then end with an error, which their clients
    are told.  protection: default: none.  access_log: log a line for each HTTP request.
    """
    protection = protection or Protection()
    port, grpc_port = http_socket.getsockname()[1], grpc_socket.getsockname()[1]
    grpc_socket.close()  # it kept the port; grpc takes no socket that exists
    grpc_server = GrpcServer(host, grpc_port, protection)
    app = RequestId(create_app(frontend, protection, tracing=frontend.tracing), access_log=access_log)
    http = _HttpServer(_uvicorn_config(app, protection, patience_s=FAREWELL_S))
    answering = asyncio.create_task(http.serve(sockets=[http_socket]))
    await grpc_server.start(frontend)
    await http.ready.wait()
    gc.collect()
    gc.freeze()  # what was made so far is here to stay: walking it would hold every stream up
    announce(ready_lines(frontend, host, port, grpc_port, protection))
    telling = asyncio.create_task(_tell_readiness(frontend, grpc_server))
    watching = asyncio.create_task(frontend.metrics.watch_loop())
    death = await unless(stop.asked, frontend.llm.wait_dead())
    frontend.draining = True
    telling.cancel()
    await grpc_server.set_ready(False)
    if death is None:
        death = await unless(stop.hurried, _drained(frontend, drain_timeout_s))
    if death is not None:
        log.error("the server ends: %s", death.message)
    await frontend.llm.close()  # what still runs ends with an error
    watching.cancel()
    http.should_exit = True
    await asyncio.gather(answering, grpc_server.stop(FAREWELL_S))
    return EXIT_STOPPED if death is None else EXIT_FAILED


async def _drained(frontend: Frontend, timeout_s: float) -> EngineDead | None:
    """Wait until no request runs, or the time is over. Returns why, if the engine was lost instead."""
    idle = asyncio.create_task(frontend.wait_idle())
    death = asyncio.create_task(frontend.llm.wait_dead())
    try:
        await asyncio.wait((idle, death), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return death.result() if death.done() else None
    finally:
        idle.cancel()
        death.cancel()


async def _tell_readiness(frontend: Frontend, grpc_server: GrpcServer) -> None:
    """Keep gRPC's health service up to date. HTTP's routes look for themselves."""
    while True:
        try:
            frontend.check_ready()
        except PolyServeError:
            await grpc_server.set_ready(False)
        else:
            await grpc_server.set_ready(True)
        await asyncio.sleep(READINESS_INTERVAL_S)


def say(text: str) -> None:
    """Write to standard output at once, also where that is a pipe."""
    sys.stdout.write(text)
    sys.stdout.flush()


def ready_lines(frontend: Frontend, host: str, port: int, grpc_port: int, protection: Protection) -> str:
    """Where the server is, and a command to try it."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    http, grpc = authority(reachable, port), authority(reachable, grpc_port)
    body: dict[str, object] = {"model": frontend.model_name, "stream": True}
    if frontend.llm.tokenizer.chat_template is not None:
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": "What is the capital of France?"}]
    else:
        path, body["prompt"] = "/v1/completions", "Beijing is the capital of"
    secret = " -H 'Authorization: Bearer KEY'" if protection.keys.required else ""
    scheme = "http" if protection.certificate is None else "https"
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return (
        f"PolyServe is ready: {frontend.model_name} at {scheme}://{http} (HTTP) and {grpc} (gRPC)\n"
        f"Try: curl -N {scheme}://{http}{path}{secret} -H 'Content-Type: application/json' -d {data}\n"
    )


class _HttpServer(uvicorn.Server):
    """uvicorn as a part of a larger server."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `run`'s."""
        yield


def _uvicorn_config(app: ASGIApp, protection: Protection, *, patience_s: float) -> uvicorn.Config:
    certificate = protection.certificate
    return uvicorn.Config(
        app,
        loop="none",
        http=partial(GuardedProtocol, limits=protection.limits),  # type: ignore[arg-type]  # called as the class is
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # what it would log, `http` answers or logs itself
        access_log=False,
        server_header=False,
        proxy_headers=False,  # which say who calls; nothing here asks, so nobody has to be believed
        headers=[("x-content-type-options", "nosniff")],
        ssl_certfile=None if certificate is None else certificate.chain,
        ssl_keyfile=None if certificate is None else certificate.key,
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(patience_s),
    )
