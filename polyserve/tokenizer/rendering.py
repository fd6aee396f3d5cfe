"""Chat templates rendered in a process of their own: `python -m polyserve.tokenizer.rendering`, one line a message.

The sandbox keeps a template from reaching Python, but not from looping for ever or from repeating a string until memory
is full, and neither can be stopped inside a thread. This process ends itself: by an alarm, whatever it is doing, and by
an error beyond MEMORY_BYTES. Whoever asked reads the end, tells its client, and starts another one.

to it     {"timeout_s", "template": {"source", "bos_token", "eos_token"}} once, then {"messages", ...}, the arguments of
          `ChatTemplate.render`
from it   {"text"}, or {"error"}: what to tell the client
"""

import json
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from polyserve.errors import InvalidRequest
from polyserve.tokenizer.chat import ChatTemplate

COMMAND = (sys.executable, "-P", "-m", "polyserve.tokenizer.rendering")
TIMEOUT_S = 2.0
MEMORY_BYTES = 256 * 2**20
MAX_GROWTH = 16  # characters of the prompt for each of what was sent; real templates repeat little
MAX_ADDED = 2**20


class TemplateProcess:
    """One template's process. Blocks, so it is for threads; they take turns."""

    def __init__(self, template: ChatTemplate, *, timeout_s: float = TIMEOUT_S) -> None:
        made_of = {"source": template.source, "bos_token": template.bos_token, "eos_token": template.eos_token}
        self._greeting = _line({"timeout_s": timeout_s, "template": made_of})
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self._process = self._start()

    def render(self, messages: list[dict[str, object]], **options: Any) -> str:
        """What `ChatTemplate.render` returns. Raises InvalidRequest, also if the template takes too much."""
        asked = _line({"messages": messages, **options})
        with self._lock:
            answer = self._ask(asked)
            if not answer:
                raise InvalidRequest(self._how_it_ended(), param="messages")
        found = json.loads(answer)
        if "error" in found:
            raise InvalidRequest(found["error"], param=found["param"])
        return str(found["text"])

    def close(self) -> None:
        """End the process. May be called while it renders, and again."""
        self._closed = True
        _discard(self._process)

    def _ask(self, line: bytes) -> bytes:
        """The answer, or nothing if the process has ended."""
        if self._process.poll() is not None and not self._closed:
            _discard(self._process)
            self._process = self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            return b""
        return self._process.stdout.readline()

    def _how_it_ended(self) -> str:
        if self._process.wait() == -signal.SIGALRM:
            return f"the chat template did not end within {self._timeout_s:g} s"
        return "the chat template took more memory than it may, or its process was ended"

    def _start(self) -> "subprocess.Popen[bytes]":
        # a session of its own: Ctrl-C is for the server
        process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert process.stdin is not None
        process.stdin.write(self._greeting)
        return process


def _discard(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what belongs to it here."""
    process.kill()
    with suppress(BrokenPipeError), process:  # it has not read all that was written
        pass


def main() -> int:
    """Render until standard input is closed."""
    greeting = json.loads(sys.stdin.buffer.readline())
    template, timeout_s = ChatTemplate(**greeting["template"]), greeting["timeout_s"]
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = num_pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while line := sys.stdin.buffer.readline():
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        answer = _line(_rendered(template, line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()
    return 0


def _rendered(template: ChatTemplate, line: bytes) -> dict[str, object]:
    try:
        text = template.render(**json.loads(line))
    except InvalidRequest as error:
        return {"error": error.message, "param": error.param}
    except MemoryError:
        return {"error": "the chat template took more memory than it may", "param": "messages"}
    if len(text) > MAX_GROWTH * len(line) + MAX_ADDED:
        return {"error": f"the chat template made {len(text)} characters of {len(line)}", "param": "messages"}
    return {"text": text}


def _line(value: dict[str, object]) -> bytes:
    """JSON of one line in ASCII, which also carries what UTF-8 cannot: half of a surrogate pair."""
    return json.dumps(value).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main())
