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

FORK_TIMEOUT_S = 20.0  # with what it has still to import
PR_SET_CHILD_SUBREAPER = 36


class Spare:
    """At most one fork server, if one is wanted."""

    def __init__(self, command: Sequence[str], *, wanted: bool) -> None:
        """command: what is run as an engine process."""
        self._command = command
        self._wanted = wanted and sys.platform == "linux"
        self._server: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None

    async def prepare(self) -> None:
        """Have one, from now on."""
        if not self._wanted or self._socket is not None:
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            command = *self._command, fork_server.FORK_SERVER
            self._server = await start_process(command, stdin=theirs.fileno(), environment=fork_server.ENVIRONMENT)
            self._socket = ours
        except OSError as error:
            log.warning("there is no process to fork engines from: %s", error.strerror)
        finally:
            theirs.close()
            if self._socket is not ours:
                ours.close()

    async def take(self) -> EngineProcess:
        """A process that waits to be told what to load; the caller's from now on."""
        if self._socket is not None:
            try:
                return EngineProcess(await asyncio.wait_for(self._fork(self._socket), FORK_TIMEOUT_S))
            except (OSError, TimeoutError) as error:
                log.warning("no engine could be forked (%s); one is started", str(error) or "it took too long")
                await self.close()
        return await EngineProcess.start(self._command)

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

    @staticmethod
    async def _fork(server: socket.socket) -> "ForkedProcess":
        lifeline, ours = os.pipe()
        try:
            socket.send_fds(server, [fork_server.FORK], [lifeline])
            pid = await asyncio.get_running_loop().sock_recv(server, fork_server.PID_BYTES)
            if not pid:
                raise ConnectionResetError("it has ended")
            return ForkedProcess(int.from_bytes(pid), ours)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(lifeline)


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
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
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
