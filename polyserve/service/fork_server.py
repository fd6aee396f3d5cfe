"""The process that engines are forked from: it imports what they need once, and holds no model.

Importing torch takes most of a restart of a small model. A fork shares that memory until it writes to it.

front to server   FORK and, beside it, the standard input of the engine that is wanted
server to front   the engine's process id; 0 while there is still something to import, which takes longer than a new
                  process where others are busy. It is forked twice, so that it becomes the front's own child, which has
                  asked the kernel for orphans (`prctl`, PR_SET_CHILD_SUBREAPER)
The server ends when the front does. While it forks it has no thread but numpy's library's, which sees to forks itself.
"""

import gc
import importlib
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

FORK_SERVER = "--fork-server"  # of a process that is to be one
FORK = b"f"
PID_BYTES = 8
NICENESS = 10  # while it imports: requests go first
NEEDED = ("polyserve.engine.engine", "polyserve.tokenizer.load")


def fork_on_demand() -> None:
    """Serve the front at standard input until it ends. Returns in forks alone, whose standard input is their own."""
    os.closerange(3, 256)  # uvloop leaves copies of standard input and error
    front, (pids, own_pid) = socket.socket(fileno=os.dup(0)), os.pipe()
    importing = threading.Thread(target=_import, daemon=True)
    importing.start()
    while True:
        lifeline = _demand(front)
        if importing.is_alive():
            os.close(lifeline)
            front.send(bytes(PID_BYTES))
            continue
        gc.freeze()  # a collection writes to what it walks
        between = os.fork()
        if not between:
            engine = os.fork()
            if not engine:
                break
            os.write(own_pid, engine.to_bytes(PID_BYTES))
            os._exit(0)
        os.close(lifeline)
        _, status = os.waitpid(between, 0)
        if status:
            os._exit(1)
        with suppress(OSError):
            front.send(os.read(pids, PID_BYTES))
    os.setsid()  # out of the terminal's reach
    os.dup2(lifeline, 0)
    for fd in (front.detach(), pids, own_pid, lifeline):
        os.close(fd)


def _demand(front: socket.socket) -> int:
    """Wait for one, and return the standard input that came with it. The front's end is that of this process."""
    with suppress(OSError):
        demand, fds, *_ = socket.recv_fds(front, len(FORK), 1)
        if demand:
            return fds[0]
    os._exit(0)


def _import() -> None:
    """In a thread of its own, which Linux lets give way to others alone: niceness is for good."""
    os.nice(NICENESS)
    _weigh_session(NICENESS)
    try:
        for name in NEEDED:
            importlib.import_module(name)
    finally:
        _weigh_session(0)


def _weigh_session(niceness: int) -> None:
    """Where the kernel weighs sessions (autogroup), a thread's niceness counts only within one."""
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))
