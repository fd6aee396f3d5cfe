"""Seconds from the start of `polyserve serve` to its ready line, and to the first token that it streams over HTTP.

Each start is a process of its own on free ports. One start before the others brings the files into the page cache; it
is not counted. Processor time, of the server and its engine until the first token has come and both have ended, says
what a start costs where neighbours take turns on the same cores.
"""

import http.client
import json
import resource
import shlex
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from polyserve.config import option
from polyserve.errors import PolyServeError
from polyserve_benchmarks.machine import machine, versions
from polyserve_benchmarks.server import started

PROMPT = "The capital of France is"
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """What `polyserve bench start` does."""

    model: str = option("smollm2", "a folder, a .gguf file, smollm2, gemma3-270m, or a Hugging Face id with @revision")
    rounds: int = option(5, "starts that are counted")
    flags: str = option("", "other flags of `polyserve serve`, as one word: --flags '--threads 2'")

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True, slots=True)
class Start:
    """One start, in seconds."""

    ready: float
    first_token: float
    processor: float


def run(starts: Starts) -> dict[str, Any]:
    """Start again and again; print a line for each and, last, one JSON document; return it."""
    server = (starts.model, *shlex.split(starts.flags))
    _start(server)
    print("start  ready s  first token s  processor s", flush=True)
    measured: list[Start] = []
    for number in range(1, starts.rounds + 1):
        measured.append(_start(server))
        print(_row(f"{number:5d}", measured[-1]), flush=True)
    columns = {name: [asdict(start)[name] for start in measured] for name in ("ready", "first_token", "processor")}
    median = Start(**{name: statistics.median(column) for name, column in columns.items()})
    print(_row("  mid", median))
    document = {
        "benchmark": "start",
        "starts": asdict(starts),
        "median": asdict(median),
        "results": [asdict(start) for start in measured],
        "versions": versions(),
        "machine": machine(),
    }
    print(json.dumps(document))
    return document


def _start(server: tuple[str, ...]) -> Start:
    """Start a server, ask it for one token, and end it."""
    before = _processor_seconds()
    began = time.perf_counter()
    with started(*server) as url:
        ready = time.perf_counter() - began
        _first_token(url)
        first_token = time.perf_counter() - began
    return Start(ready, first_token, _processor_seconds() - before)


def _first_token(url: str) -> None:
    """Return when the first event of a stream is here."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
    body = {"model": _model_at(connection), "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    event = connection.getresponse().readline()
    connection.close()
    if not event.startswith(b"data: {"):
        raise PolyServeError(f"the server streamed no token: {event.decode().strip()}")


def _model_at(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/v1/models")
    return str(json.load(connection.getresponse())["data"][0]["id"])


def _processor_seconds() -> float:
    """Of every child that has ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _row(number: str, start: Start) -> str:
    return f"{number}  {start.ready:7.2f}  {start.first_token:13.2f}  {start.processor:11.2f}"
