"""`polyserve serve`, from the command line to the exit code.

    ports taken -> engine told to load -> what answers is imported -> engine loaded -> server.py -> engine ends
Ports are taken before the model is loaded, so that one in use is noticed at once; early HTTP clients wait.
The engine process comes before the imports: its own, of torch, take longer than all that this process does meanwhile.
gRPC comes after it: its threads and forking do not go together. What this process forks runs another program at once,
engines are forked elsewhere, so that gRPC's own care for forks is not needed, and would be in the way.
"""

import asyncio
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from polyserve.api.limits import Limits
from polyserve.api.normalization import Normalization
from polyserve.api.ports import PortUnavailable, listen
from polyserve.api.protection import Protection
from polyserve.api.reload import read_log_level, reloading_at_hangup
from polyserve.api.stop import EXIT_FAILED, EXIT_STOPPED, Stop, told_to_stop, unless
from polyserve.api.store import Store
from polyserve.config import EngineConfig, ServerConfig
from polyserve.log import get_logger
from polyserve.service.admission import AdmissionConfig
from polyserve.service.supervisor import Supervisor

if TYPE_CHECKING:
    from polyserve.service.async_llm import AsyncLLM

log = get_logger(__name__)


async def run(
    engine: EngineConfig,
    server: ServerConfig,
    limits: Limits | None = None,
    admission: AdmissionConfig | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM (returns 0) or until no engine stays alive (returns 1).

    Raises ModelLoadError, SettingsError.
    """
    protection = Protection.from_config(server, limits or Limits())
    stop = Stop()
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # read when grpc is imported
    _allow_descriptors()
    try:
        with (
            listen(server.host, server.port) as http_socket,
            listen(server.host, server.grpc_port) as grpc_socket,
            told_to_stop(stop),
        ):
            async with _store(server) as store:
                return await _run(engine, server, (http_socket, grpc_socket), stop, protection, admission, store)
    except PortUnavailable as error:
        sys.stderr.write(f"polyserve: {error}\n")
        return EXIT_FAILED


async def _run(
    engine: EngineConfig,
    server: ServerConfig,
    sockets: tuple[socket.socket, socket.socket],
    stop: Stop,
    protection: Protection,
    admission: AdmissionConfig | None,
    store: Store | None,
) -> int:
    if not protection.keys.required and not _is_local(server.host):
        log.warning("no API keys: whoever reaches %s can use this server", server.host)
    model_names = server.served_model_name or [engine.model]
    tracing = None
    if server.otlp_traces_endpoint is not None:
        from polyserve.api.tracing import Tracing

        tracing = Tracing(server.otlp_traces_endpoint, model_name=model_names[0])
    starting = Supervisor.start(engine, step_timeout_s=server.step_timeout, fork_server=server.fork_server)
    started = await unless(stop.asked, starting)
    if started is None:
        return EXIT_STOPPED

    from polyserve.api.frontend import Frontend
    from polyserve.api.server import say, serve
    from polyserve.service.async_llm import AsyncLLM

    joining = AsyncLLM.join(
        *started,
        chat_template=server.chat_template,
        max_logprobs=server.max_logprobs,
        admission=admission,
        grammar_timeout_ms=server.grammar_timeout_ms,
    )
    llm = await unless(stop.asked, joining)
    if llm is None:
        return EXIT_STOPPED
    try:
        _set_log_level(llm, server.log_level_file)
        frontend = Frontend(
            llm,
            model_names=model_names,
            limits=protection.limits,
            tool_call_parser=server.tool_call_parser,
            request_timeout_s=server.request_timeout,
            metrics_compat=server.metrics_compat,
            tracing=tracing,
            store=store,
            normalization=cast(Normalization, server.normalize_input),
        )
        with reloading_at_hangup(protection.keys.reload, partial(_set_log_level, llm, server.log_level_file)):
            return await serve(
                frontend,
                *sockets,
                stop,
                host=server.host,
                announce=say,
                drain_timeout_s=server.drain_timeout,
                protection=protection,
                access_log=server.access_log,
            )
    finally:
        await llm.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


@asynccontextmanager
async def _store(server: ServerConfig) -> AsyncIterator[Store | None]:
    """Where completions are kept, if they are. Raises SettingsError."""
    if server.store is None:
        yield None
        return
    store = await Store.open(Path(server.store), limit=server.store_limit)
    try:
        yield store
    finally:
        await store.close()


def _set_log_level(llm: "AsyncLLM", file: str | None) -> None:
    """Log from the level on that the file holds, if there is one. Raises SettingsError."""
    if file is not None:
        llm.set_log_level(read_log_level(Path(file)))


def _allow_descriptors() -> None:
    """Connections are descriptors, of which many systems allow 1024 unless they are asked for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    return host == "localhost" or host == "::1" or host.startswith("127.")
