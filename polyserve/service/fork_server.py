"""The process that engines are forked from: it imports what they need once, and holds no model.

Importing torch takes most of a restart of a small model. A fork shares that memory until it writes to it.

front to server   FORK and, beside it, the standard input of the engine that is wanted
server to front   the engine's process id. It is forked twice, so that it becomes the front's own child, which has asked
                  the kernel for orphans (`prctl`, PR_SET_CHILD_SUBREAPER)
The server has one thread while it forks, and ends when the front does.
"""

import gc
import importlib
import os
import socket
import threading

from polyserve import openmp

FORK_SERVER = "--fork-server"  # of a process that is to be one
FORK = b"f"
PID_BYTES = 8
NICENESS = 10  # while it imports: a tenth of a core that others are busy on
NEEDED = ("polyserve.engine.engine", "polyserve.tokenizer.load")
# numpy's library has other threads from its import on, which a fork has not
ENVIRONMENT = openmp.ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}


def fork_on_demand() -> None:
    """Serve the front at standard input until it ends. Returns in forks alone, whose standard input is their own."""
    importing = threading.Thread(target=_import)
    importing.start()
    importing.join()
    gc.freeze()  # a collection writes to what it walks
    front = socket.socket(fileno=os.dup(0))
    pids, own_pid = os.pipe()
    while True:
        demand, fds, *_ = socket.recv_fds(front, len(FORK), 1)
        if not demand:
            os._exit(0)
        between = os.fork()
        if not between:
            engine = os.fork()
            if not engine:
                break
            os.write(own_pid, engine.to_bytes(PID_BYTES))
            os._exit(0)
        os.close(fds[0])
        _, status = os.waitpid(between, 0)
        if status:
            os._exit(1)
        front.send(os.read(pids, PID_BYTES))
    os.setsid()  # out of the terminal's reach
    os.dup2(fds[0], 0)
    for fd in (front.detach(), pids, own_pid, fds[0]):
        os.close(fd)


def _import() -> None:
    """In a thread of its own, which Linux lets give way to others alone: niceness is for good."""
    os.nice(NICENESS)
    for name in NEEDED:
        importlib.import_module(name)
