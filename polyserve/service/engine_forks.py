"""Where the next engine process comes from: a fork server (fork_server.py) that is there before it is needed.

    prepare   start it; that there is none delays a restart, and nothing else
    take      a fork of it, or else a new process
Linux alone: elsewhere a fork of a process that has imported so much is not safe, or cannot become this one's child.
"""

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence

from polyserve.log import get_logger
from polyserve.service import fork_server
from polyserve.service.engine_process import EngineProcess, start_process

log = get_logger(__name__)

FORK_TIMEOUT_S = 5.0
PR_SET_CHILD_SUBREAPER = 36
UNKNOWN = 255  # exit code of a child that somebody else has waited for, as asyncio has it


class EngineForks:
    """At most one fork server, if one is wanted."""

    def __init__(self, command: Sequence[str], *, wanted: bool) -> None:
        """command: what is run as an engine process."""
        self._command = command
        self._wanted = wanted and sys.platform == "linux"
        self._server: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None

    async def prepare(self) -> None:
        """Have one, from now on, if there can be one."""
        if not self._wanted or self._socket is not None:
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            _adopt_forks()
            command = *self._command, fork_server.FORK_SERVER
            self._server = await start_process(command, stdin=theirs.fileno())
            self._socket = ours
        except (OSError, AttributeError) as error:
            self._wanted = False
            log.warning("engines that end are replaced by new processes, not by forks: %s", error)
        finally:
            theirs.close()
            if self._socket is not ours:
                ours.close()

    async def take(self) -> EngineProcess:
        """A process that waits to be told what to load; the caller's from now on."""
        fork = None if self._socket is None else await self._fork(self._socket)
        return await EngineProcess.start(self._command) if fork is None else EngineProcess(fork)

    async def close(self) -> None:
        """End the server."""
        server, self._server = self._server, None
        if self._socket is None or server is None:
            return
        self._socket.close()
        self._socket = None
        if server.returncode is None:
            server.kill()  # it may be stuck
        await server.wait()

    async def _fork(self, server: socket.socket) -> "ForkedProcess | None":
        """None if it is not ready; and no server any more if it has ended or does not answer."""
        lifeline, ours = os.pipe()
        fork = None
        try:
            socket.send_fds(server, [fork_server.FORK], [lifeline])
            async with asyncio.timeout(FORK_TIMEOUT_S):
                answer = await asyncio.get_running_loop().sock_recv(server, fork_server.PID_BYTES)
            if not answer:
                raise ConnectionResetError("it has ended")
            if pid := int.from_bytes(answer):
                fork = ForkedProcess(pid, ours)
        except (OSError, TimeoutError) as error:
            log.warning("no engine could be forked (%s); one is started", str(error) or "it took too long")
            await self.close()
        finally:
            os.close(lifeline)
            if fork is None:
                os.close(ours)
        return fork


def _adopt_forks() -> None:
    """Be the parent of every orphan. Raises OSError or AttributeError where that, or watching them, is not possible."""
    os.close(os.pidfd_open(os.getpid()))  # not every build of Python has it
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("the kernel gives them to somebody else")


class ForkedProcess:
    """A child of this process that it has not started itself, as `asyncio.subprocess.Process` shows others."""

    def __init__(self, pid: int, stdin: int) -> None:
        self._fd = os.pidfd_open(pid)
        self.pid = pid
        self.returncode: int | None = None
        self.stdin = os.fdopen(stdin, "wb", buffering=0)
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._end)

    def _end(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        try:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            self.returncode = UNKNOWN
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
