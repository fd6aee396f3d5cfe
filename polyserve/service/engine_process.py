"""The front's end of one engine process: starts it, speaks with it, notices its death, ends it.

It owns the process, whose standard input is its lifeline, and the socket, in a folder that only this user can enter.
Nothing is ever lost on the socket: its queues have no limit of their own, because what is under way is limited by what
was admitted in one direction, and in the other by what was heard (`messages.Heard`).
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import zmq

from polyserve.config import EngineConfig
from polyserve.errors import EngineDead, ModelLoadError
from polyserve.log import get_logger, log_form
from polyserve.openmp import ENVIRONMENT
from polyserve.service.last_step import last_step
from polyserve.service.messages import (
    HEARD_EVERY,
    EngineMessage,
    Failed,
    FrontMessage,
    Heard,
    Hello,
    Outputs,
    Ready,
    Start,
)

log = get_logger(__name__)

# -P: nothing is imported from the current folder
COMMAND = (sys.executable, "-P", "-m", "polyserve.service.core_process")
LAST_WORDS_TIMEOUT_S = 0.5  # how long what an ended process has sent may take to arrive
CLOSE_TIMEOUT_S = 5.0  # how long the engine may take to end before it is killed
READABLE = int(zmq.POLLIN)  # as an enumeration's flag it would cost more than the question itself
STACKS_TIMEOUT_S = 2.0  # how long a stuck engine may take to write its stacks before it is killed


async def start_process(command: Sequence[str], *, stdin: int) -> asyncio.subprocess.Process:
    """Start a process out of the terminal's reach. Ctrl-C is for the front, standard output for the front's user."""
    return await asyncio.create_subprocess_exec(
        *command, stdin=stdin, stdout=2, env=ENVIRONMENT | os.environ, start_new_session=True
    )


class Process(Protocol):
    """What is asked of a process: `asyncio.subprocess.Process`, and what engine_forks.py makes of a fork."""

    @property
    def pid(self) -> int: ...
    @property
    def stdin(self) -> "Lifeline | None": ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


class Lifeline(Protocol):
    def write(self, data: bytes, /) -> object: ...
    def close(self) -> None: ...


class EngineProcess:
    """One engine process and the socket to it."""

    def __init__(self, process: Process) -> None:
        """process: it waits to be told what to load."""
        self._process = process
        self._folder = Path(tempfile.mkdtemp(prefix="polyserve-"))
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[EngineMessage] = msgspec.msgpack.Decoder(EngineMessage)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self._socket.setsockopt(option, 0)
        self._socket.connect(f"ipc://{self._socket_path}")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._greeting: asyncio.Future[Ready | Failed] = self._loop.create_future()
        self._deliver: Callable[[Outputs], None] = _ignore
        self._num_new = 0  # Outputs that it has not been told were heard
        self._last_word = time.monotonic()
        self._oom_kills = _num_oom_kills()

    @classmethod
    async def start(cls, command: Sequence[str] = COMMAND) -> "EngineProcess":
        """Start the process."""
        return cls(await start_process(command, stdin=asyncio.subprocess.PIPE))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def _socket_path(self) -> Path:
        return self._folder / "engine.sock"

    def load(self, config: EngineConfig) -> None:
        """Tell it what to load; it begins at once."""
        assert self._process.stdin is not None
        level = logging.getLevelName(log.getEffectiveLevel())
        start = Start(config, str(self._socket_path), level.lower(), log_form())
        with contextlib.suppress(BrokenPipeError):  # it has ended: `ready` says so
            self._process.stdin.write(msgspec.json.encode(start) + b"\n")
        self.send(Hello())

    async def ready(self) -> Ready:
        """Wait until it has loaded. Raises what it says went wrong, or EngineDead."""
        death = asyncio.create_task(self.died())
        try:
            await asyncio.wait((self._greeting, death), return_when=asyncio.FIRST_COMPLETED)
            if not self._greeting.done() and not self._was_killed:
                await asyncio.wait((self._greeting,), timeout=LAST_WORDS_TIMEOUT_S)
            if not self._greeting.done():
                raise await death
        finally:
            death.cancel()
        greeting = self._greeting.result()
        if isinstance(greeting, Failed):
            raise ModelLoadError(greeting.message)
        return greeting

    def listen(self, deliver: Callable[[Outputs], None]) -> None:
        """From now on, call `deliver` on the event loop with what each turn brings."""
        self._deliver = deliver

    def send(self, message: FrontMessage) -> None:
        """Pass a message on; it is queued at once and without limit."""
        self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        self._loop.call_soon(self._read)

    def ask(self) -> None:
        """Have it answer: a process that is well does so after the step under way."""
        self._num_new, num_outputs = 0, self._num_new
        self.send(Heard(num_outputs))

    def silent_s(self) -> float:
        """For how many seconds nothing came from it."""
        self._read()
        return time.monotonic() - self._last_word

    def last_step(self) -> set[str]:
        """The ids of the requests in the last step that it began."""
        return last_step(self._folder)

    def _read(self) -> None:
        """Take every message that is there.

        Called when the socket's descriptor says that something happened. It says so once, and a send can have taken
        note of it (zmq_getsockopt, ZMQ_FD). zmq.asyncio does the same with a future for each message, in double time.
        """
        while not self._socket.closed and int(self._socket.getsockopt(zmq.EVENTS)) & READABLE:
            message = self._decoder.decode(self._socket.recv(zmq.NOBLOCK))
            self._last_word = time.monotonic()
            if isinstance(message, Outputs):
                self._num_new += 1
                self._deliver(message)
                if self._num_new >= HEARD_EVERY:
                    self.ask()
            else:
                self._greeting.set_result(message)

    async def died(self) -> EngineDead:
        """Wait for the end of the process and say how it ended."""
        code = await self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return EngineDead(f"the engine process ended ({how})")

    @property
    def _was_killed(self) -> bool:
        """Whether a signal ended it, before it could say anything."""
        return self._process.returncode is not None and self._process.returncode < 0

    @property
    def killed_from_outside(self) -> bool:
        """Whether somebody sent SIGKILL, who was not the kernel in want of memory: nothing that it did is to blame."""
        return self._process.returncode == -signal.SIGKILL and _num_oom_kills() == self._oom_kills

    async def kill(self) -> None:
        """End a process that is stuck. It writes the stacks of its threads to standard error first, if it still can."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGABRT)
            self._process.send_signal(signal.SIGCONT)  # one that was stopped could not
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), STACKS_TIMEOUT_S)
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def close(self) -> None:
        """End the process, however it is, and remove what belongs to it. May be called at any time, and again."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            log.warning("the engine process did not end within %g s of being told to; it is killed", CLOSE_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        finally:
            if not self._socket.closed:
                self._loop.remove_reader(self._socket.fileno())
                self._socket.close()
                self._context.term()
            shutil.rmtree(self._folder, ignore_errors=True)


def _num_oom_kills() -> int:
    """How many processes of this machine the kernel has killed for memory."""
    with contextlib.suppress(OSError), open("/proc/vmstat", encoding="ascii") as lines:
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    return 0


def _ignore(_: Outputs) -> None:
    """Who listens to an engine that nobody has asked for anything yet."""
