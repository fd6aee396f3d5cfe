"""Both servers in front of a FakeLLM, on free ports, in a thread of their own: tests use ordinary blocking clients."""

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvloop

from polyserve.api.frontend import Frontend
from polyserve.api.normalization import Normalization
from polyserve.api.ports import listen
from polyserve.api.protection import Protection
from polyserve.api.server import serve
from polyserve.api.stop import Stop
from polyserve.api.store import Store
from polyserve.api.tracing import Tracing
from support.fake_llm import FakeLLM, fake_frontend

HOST = "127.0.0.1"
TIMEOUT_S = 60.0  # of what happens soon: longer than a busy machine makes it
DRAIN_TIMEOUT_S = 0.5
STORE_LIMIT = 5  # completions of a tenant


class LiveServer:
    """`exit_code` is known once the server has ended."""

    llm: FakeLLM
    frontend: Frontend
    url: str
    grpc_address: str
    announced: str

    def __init__(
        self,
        make_llm: Callable[[], FakeLLM],
        protection: Protection,
        drain_timeout_s: float,
        request_timeout_s: float,
        tracing: Tracing | None,
        store_path: Path | None,
        normalization: Normalization,
    ) -> None:
        self._normalization = normalization
        self._tracing = tracing
        self._drain_timeout_s = drain_timeout_s
        self._request_timeout_s = request_timeout_s
        self._make_llm = make_llm
        self._store_path = store_path
        self._protection = protection
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.exit_code: int | None = None

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(TIMEOUT_S)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.ask_to_stop()
        self.join()

    def ask_to_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.ask)

    def release(self) -> None:
        """Let requests go on that were held."""
        self._loop.call_soon_threadsafe(self.llm.release)

    def num_tasks(self) -> int:
        """Of the server's loop."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return asyncio.run_coroutine_threadsafe(count(), self._loop).result(TIMEOUT_S)

    def join(self) -> None:
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    def die(self) -> None:
        """Let the engine end."""
        self._loop.call_soon_threadsafe(self.llm.die)

    def _run(self) -> None:
        self.exit_code = uvloop.run(self._serve())

    async def _serve(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._stop = Stop()
        self.llm = self._make_llm()
        store = None
        if self._store_path is not None:
            store = await Store.open(self._store_path, limit=STORE_LIMIT)
        self.frontend = fake_frontend(
            self.llm,
            limits=self._protection.limits,
            request_timeout_s=self._request_timeout_s,
            tracing=self._tracing,
            store=store,
            normalization=self._normalization,
        )
        with listen(HOST, 0) as http_socket, listen(HOST, 0) as grpc_socket:
            self.url = f"http://{HOST}:{http_socket.getsockname()[1]}"
            self.grpc_address = f"{HOST}:{grpc_socket.getsockname()[1]}"
            return await serve(
                self.frontend,
                http_socket,
                grpc_socket,
                self._stop,
                host=HOST,
                announce=self._announce,
                drain_timeout_s=self._drain_timeout_s,
                protection=self._protection,
                access_log=True,
            )

    def _announce(self, text: str) -> None:
        self.announced = text
        self._ready.set()


@contextmanager
def live_server(
    make_llm: Callable[[], FakeLLM] = FakeLLM,
    *,
    protection: Protection | None = None,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    request_timeout_s: float = math.inf,
    tracing: Tracing | None = None,
    store_path: Path | None = None,
    normalization: Normalization = "none",
) -> Iterator[LiveServer]:
    """A server for as long as the block runs."""
    server = LiveServer(
        make_llm, protection or Protection(), drain_timeout_s, request_timeout_s, tracing, store_path, normalization
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


def events_of(response: httpx.Response) -> list[dict[str, object] | str]:
    """The data of every event of a stream; "[DONE]" stays a string."""
    events: list[dict[str, object] | str] = []
    for block in response.read().decode().split("\n\n")[:-1]:
        assert block.startswith("data: "), block
        data = block.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
    return events


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what happens soon in the server's thread."""
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
