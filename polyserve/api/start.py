"""`polyserve serve`, from the command line to the exit code.

    ports taken -> engine told to load -> what answers is imported -> engine loaded -> server.py -> engine ends
Ports are taken before the model is loaded, so that one in use is noticed at once; early HTTP clients wait.
The engine process comes before the imports: its own, of torch, take longer than all that this process does meanwhile.
gRPC comes after it: its threads and forking do not go together.
"""

import asyncio
import socket
import sys

from polyserve.api.ports import PortUnavailable, listen
from polyserve.api.stop import EXIT_FAILED, EXIT_STOPPED, told_to_stop, unless
from polyserve.config import EngineConfig, ServerConfig
from polyserve.service.engine_process import start_engine


async def run(engine: EngineConfig, server: ServerConfig) -> int:
    """Serve until SIGINT or SIGTERM (returns 0) or until the engine dies (returns 1). Raises ModelLoadError."""
    stop = asyncio.Event()
    try:
        with (
            listen(server.host, server.port) as http_socket,
            listen(server.host, server.grpc_port) as grpc_socket,
            told_to_stop(stop),
        ):
            return await _run(engine, server, (http_socket, grpc_socket), stop)
    except PortUnavailable as error:
        sys.stderr.write(f"polyserve: {error}\n")
        return EXIT_FAILED


async def _run(
    engine: EngineConfig, server: ServerConfig, sockets: tuple[socket.socket, socket.socket], stop: asyncio.Event
) -> int:
    started = await unless(stop, start_engine(engine))
    if started is None:
        return EXIT_STOPPED

    from polyserve.api.frontend import Frontend
    from polyserve.api.server import say, serve
    from polyserve.service.async_llm import AsyncLLM

    joining = AsyncLLM.join(
        *started,
        chat_template=server.chat_template,
        max_logprobs=server.max_logprobs,
        grammar_timeout_ms=server.grammar_timeout_ms,
    )
    llm = await unless(stop, joining)
    if llm is None:
        return EXIT_STOPPED
    try:
        frontend = Frontend(llm, model_name=server.served_model_name or engine.model)
        return await serve(frontend, *sockets, stop, host=server.host, announce=say)
    finally:
        await llm.close()
