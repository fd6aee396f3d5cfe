"""The server of one model: the engine in its process, HTTP and gRPC here, from the command line to the exit code.

    ports taken -> engine loaded -> both answer, ready line -> a signal or the engine's death -> both end -> engine ends
Ports are taken before the model is loaded, so that one in use is noticed at once; early HTTP clients wait.
The gRPC server is made after the engine process is started, because gRPC's threads and forking do not go together.
"""

import asyncio
import json
import math
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn

from polyserve.api.frontend import Frontend
from polyserve.api.grpc.server import GrpcServer
from polyserve.api.http.app import create_app
from polyserve.api.ports import BACKLOG, PortUnavailable, authority, listen
from polyserve.config import EngineConfig, ServerConfig
from polyserve.log import get_logger
from polyserve.service.async_llm import AsyncLLM

log = get_logger(__name__)

EXIT_STOPPED = 0
EXIT_FAILED = 1
GRACE_S = 5.0  # how long requests that run may take when the server is told to end
FAREWELL_S = 2.0  # how long their clients may take to read what became of them

Result = TypeVar("Result")


async def run(engine: EngineConfig, server: ServerConfig) -> int:
    """Serve until SIGINT or SIGTERM (returns 0) or until the engine dies (returns 1). Raises ModelLoadError."""
    stop = asyncio.Event()
    try:
        with (
            listen(server.host, server.port) as http_socket,
            listen(server.host, server.grpc_port) as grpc_socket,
            told_to_stop(stop),
        ):
            starting = AsyncLLM.start(engine, chat_template=server.chat_template, max_logprobs=server.max_logprobs)
            llm = await unless(stop, starting)
            if llm is None:
                return EXIT_STOPPED
            try:
                frontend = Frontend(llm, model_name=server.served_model_name or engine.model)
                return await serve(frontend, http_socket, grpc_socket, stop, host=server.host, announce=say)
            finally:
                await llm.close()
    except PortUnavailable as error:
        sys.stderr.write(f"polyserve: {error}\n")
        return EXIT_FAILED


async def serve(
    frontend: Frontend,
    http_socket: socket.socket,
    grpc_socket: socket.socket,
    stop: asyncio.Event,
    *,
    host: str,
    announce: Callable[[str], None],
    grace_s: float = GRACE_S,
) -> int:
    """Answer over both protocols until `stop` is set or the engine dies. Returns the exit code.

    announce: called once, with the ready line, when both answer.  grace_s: how long requests may take after the end was
    asked for; those that still run then end with an error, which their clients are told.
    """
    port, grpc_port = http_socket.getsockname()[1], grpc_socket.getsockname()[1]
    grpc_socket.close()  # it kept the port; grpc takes no socket that exists
    grpc_server = GrpcServer(host, grpc_port)
    http = _HttpServer(_uvicorn_config(frontend, patience_s=grace_s + FAREWELL_S))
    answering = asyncio.create_task(http.serve(sockets=[http_socket]))
    await grpc_server.start(frontend)
    await http.ready.wait()
    announce(ready_lines(frontend, host, port, grpc_port))
    death = await unless(stop, frontend.llm.wait_dead())
    if death is not None:
        log.error("the server ends: %s", death.message)
    http.should_exit = True
    ending = asyncio.gather(answering, grpc_server.stop(grace_s + FAREWELL_S))
    _, late = await asyncio.wait((ending,), timeout=grace_s)
    if late:
        await frontend.llm.close()
    await ending
    return EXIT_STOPPED if death is None else EXIT_FAILED


def say(text: str) -> None:
    """Write to standard output at once, also where that is a pipe."""
    sys.stdout.write(text)
    sys.stdout.flush()


def ready_lines(frontend: Frontend, host: str, port: int, grpc_port: int) -> str:
    """Where the server is, and a command to try it."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    http, grpc = authority(reachable, port), authority(reachable, grpc_port)
    body: dict[str, object] = {"model": frontend.model_name, "stream": True}
    if frontend.llm.tokenizer.chat_template is not None:
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": "What is the capital of France?"}]
    else:
        path, body["prompt"] = "/v1/completions", "Beijing is the capital of"
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return (
        f"PolyServe is ready: {frontend.model_name} at http://{http} (HTTP) and {grpc} (gRPC)\n"
        f"Try: curl -N http://{http}{path} -H 'Content-Type: application/json' -d {data}\n"
    )


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of the work; None, and the work is cancelled, if `stop` is set first."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


@contextmanager
def told_to_stop(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` at SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


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


def _uvicorn_config(frontend: Frontend, *, patience_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(frontend),
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(patience_s),
    )
