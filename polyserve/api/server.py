"""The server of one model: the engine in its process, HTTP and gRPC here, from the command line to the exit code.

    ports taken -> engine loaded -> both servers answer, ready line -> a signal, or the engine's death -> both servers end -> engine ends
Ports are taken before the model is loaded, so that one that is in use is noticed at once; who connects before the end of loading waits.
"""

import asyncio
import json
import shlex
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn

from polyserve.api.frontend import Frontend
from polyserve.api.grpc.server import GrpcServer
from polyserve.api.http.app import create_app
from polyserve.api.ports import BACKLOG, authority, listen
from polyserve.config import EngineConfig, ServerConfig
from polyserve.log import get_logger
from polyserve.service.async_llm import AsyncLLM

log = get_logger(__name__)

EXIT_STOPPED = 0
EXIT_FAILED = 1
GRACE_S = 5.0  # how long requests that run may take when the server is told to end

Result = TypeVar("Result")


async def run(engine: EngineConfig, server: ServerConfig) -> int:
    """Serve until SIGINT or SIGTERM (returns 0) or until the engine dies (returns 1). Raises ModelLoadError."""
    try:
        http_socket, grpc_server = take_ports(server)
    except OSError as error:
        sys.stderr.write(f"polyserve: {error}\n")
        return EXIT_FAILED
    stop = asyncio.Event()
    with http_socket, told_to_stop(stop):
        starting = AsyncLLM.start(engine, chat_template=server.chat_template, max_logprobs=server.max_logprobs)
        llm = await unless(stop, starting)
        if llm is None:
            return EXIT_STOPPED
        try:
            frontend = Frontend(llm, model_name=server.served_model_name or engine.model)
            return await serve(frontend, http_socket, grpc_server, stop, host=server.host)
        finally:
            await llm.close()


async def serve(
    frontend: Frontend, http_socket: socket.socket, grpc_server: GrpcServer, stop: asyncio.Event, *, host: str
) -> int:
    """Answer over both protocols until `stop` is set or the engine dies. Returns the exit code."""
    http = _HttpServer(_uvicorn_config(frontend))
    answering = asyncio.create_task(http.serve(sockets=[http_socket]))
    await grpc_server.start(frontend)
    await http.ready.wait()
    sys.stdout.write(ready_lines(frontend, host, http_socket.getsockname()[1], grpc_server.port))
    sys.stdout.flush()
    death = await unless(stop, frontend.llm.wait_dead())
    if death is not None:
        log.error("the server ends: %s", death.message)
    http.should_exit = True
    await asyncio.gather(answering, grpc_server.stop(GRACE_S))
    return EXIT_STOPPED if death is None else EXIT_FAILED


def take_ports(config: ServerConfig) -> tuple[socket.socket, GrpcServer]:
    """Both of them, or OSError that says which one cannot be had."""
    http_socket = listen(config.host, config.port)
    try:
        return http_socket, GrpcServer(config.host, config.grpc_port)
    except OSError:
        http_socket.close()
        raise


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


def _uvicorn_config(frontend: Frontend) -> uvicorn.Config:
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
        timeout_graceful_shutdown=int(GRACE_S),
    )
