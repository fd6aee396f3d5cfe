"""The parent's side of one engine: a child in its own environment, asked one thing at a time, stopped while it waits.

Between its runs a child and whatever it started are held by SIGSTOP, so that threads that spin for work cannot slow the
engine whose turn it is. Standard error goes to a file; its last lines say why a child ended. A peer does not see this
process's PYTHONPATH, which is meant for another environment.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).with_name("driver.py")
LOG_LINES = 5
GOODBYE_S = 10.0


class EngineFailed(Exception):
    """This engine cannot be measured; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a child is told first."""

    model: str  # path of the form that this engine reads
    threads: int
    max_streams: int
    max_len: int  # tokens of the longest sequence, prompt and answer
    kv_bytes: int  # keys and values of all streams at that length, with room to spare
    cache: str  # folder for what an engine makes of the model
    options: dict[str, object] = field(default_factory=dict)  # of this engine alone


class EngineProcess:
    """A loaded engine. It is stopped from the moment it is ready, but for its turns."""

    def __init__(self, python: Path | str, script: Path, job: Job, *, log: Path, timeout_s: float) -> None:
        """Start the child and wait until it is ready. Raises EngineFailed."""
        self._log = log
        self._timeout_s = timeout_s
        self._lines: queue.Queue[str | None] = queue.Queue()
        start = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1"}
        if str(python) != sys.executable:
            environment.pop("PYTHONPATH", None)
        with log.open("wb") as errors:
            self._child = subprocess.Popen(
                [str(python), "-P", str(DRIVER), str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            ready = self._ask(asdict(job))["ready"]
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - start
        self.load_seconds: float = ready["load_seconds"]
        self.version: str = ready["version"]
        self.settings: dict[str, object] = ready["settings"]
        self._hold()

    def run(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, list[list[int]]]:
        """Seconds and token ids of one run. Raises EngineFailed, also if an answer has another length."""
        self._signal(signal.SIGCONT)
        answer = self._ask({"prompts": prompts, "num_tokens": num_tokens})
        self._hold()
        token_ids: list[list[int]] = answer["token_ids"]
        lengths = sorted({len(ids) for ids in token_ids})
        if len(token_ids) != len(prompts) or lengths != [num_tokens]:
            raise EngineFailed(f"asked for {len(prompts)} x {num_tokens} tokens, got {len(token_ids)} x {lengths}")
        return answer["seconds"], token_ids

    def close(self) -> None:
        """End the child and whatever it started."""
        assert self._child.stdin is not None
        self._signal(signal.SIGCONT)
        with suppress(OSError, subprocess.TimeoutExpired):  # it is killed below
            self._child.stdin.close()
            self._child.wait(GOODBYE_S)
        self._signal(signal.SIGKILL)
        self._child.wait()
        self._reader.join()

    def _ask(self, what: dict[str, object]) -> dict[str, Any]:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(what) + "\n")
            self._child.stdin.flush()
            line = self._lines.get(timeout=self._timeout_s)
        except queue.Empty:
            raise EngineFailed(f"no answer within {self._timeout_s:g} s") from None
        except OSError:
            line = None
        if line is None:
            raise EngineFailed("it ended: " + self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineFailed(answer["error"])
        return answer

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-LOG_LINES:] if line.strip()) or "it said nothing"

    def _hold(self) -> None:
        """Stop the child, and wait until it has stopped (or ended)."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: int) -> None:
        """To the child's whole process group, which it leads."""
        with suppress(ProcessLookupError):  # it has ended; the next question says so
            os.killpg(self._child.pid, number)


def python_of(engine: str, peers: Path) -> Path | str:
    """The interpreter of an engine's environment. Raises EngineFailed if there is none."""
    if engine == "polyserve":
        return sys.executable
    python = peers / engine / "bin" / "python"
    if not python.exists():
        raise EngineFailed(f"it is not installed: benchmarks/peers.sh {engine}")
    return python
