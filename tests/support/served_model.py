"""`polyserve serve` as users run it: a process of its own on free ports, with the real engine behind both protocols."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from polyserve.service.core_process import NAME

STOP_TIMEOUT_S = 20


@dataclass(frozen=True)
class Served:
    url: str
    grpc_address: str
    process: subprocess.Popen[str]


def engine_of(front: int) -> psutil.Process:
    """The engine process of a front, which has other children, too."""
    (engine,) = (child for child in psutil.Process(front).children() if child.name() == NAME)
    return engine


@contextmanager
def served(model: Path | str, *flags: str) -> Iterator[Served]:
    """A ready server for as long as the block runs. What it logs appears if the test fails."""
    command = Path(sys.executable).with_name("polyserve")
    ports = ("--port", "0", "--grpc-port", "0")
    with subprocess.Popen([command, "serve", model, *ports, *flags], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            addresses = re.search(r"at (http://\S+) \(HTTP\) and (\S+) \(gRPC\)", line)
            assert addresses is not None, f"the server said {line!r}"
            yield Served(addresses[1], addresses[2], process)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()  # else leaving the block would wait for ever
                raise
