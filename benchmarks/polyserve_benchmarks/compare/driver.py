"""The main program of a child: loads one engine once, then answers requests, one JSON object a line.

    python -P driver.py engines/NAME.py      in the engine's own environment: standard library only
in   job                                     see `process.Job`
out  {"ready": {"version", "load_seconds", "settings"}}
in   {"prompts": [[token ids]], "num_tokens": n}
out  {"seconds", "token_ids": [[...]]}
Anything that goes wrong is {"error": text} and the end. Seconds run from the request to the last token of the last
stream. Whatever an engine prints goes to standard error, so that standard output has the protocol's lines alone.
"""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO


class Engine(Protocol):
    version: str
    settings: dict[str, object]

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]: ...


def main() -> int:
    """Serve standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(Path(sys.argv[1]), sys.stdin, answers)
    except BaseException as error:
        say(answers, {"error": f"{type(error).__name__}: {error}"})
        raise
    return 0


def serve(engine_file: Path, requests: TextIO, answers: TextIO) -> None:
    """Load the engine and answer every request."""
    job = json.loads(requests.readline())
    module = import_file(engine_file)
    if hasattr(module, "prepare"):
        module.prepare(job)
    start = time.perf_counter()
    engine: Engine = module.load(job)
    ready = {
        "version": engine.version,
        "load_seconds": time.perf_counter() - start,
        "settings": engine.settings,
    }
    say(answers, {"ready": ready})
    for line in requests:
        request = json.loads(line)
        start = time.perf_counter()
        token_ids = engine.generate(request["prompts"], request["num_tokens"])
        say(answers, {"seconds": time.perf_counter() - start, "token_ids": token_ids})


def import_file(path: Path) -> Any:
    """A module from a path, under a name of its own: the file engines/vllm.py must not hide the package vllm."""
    spec = importlib.util.spec_from_file_location(f"compared_{path.stem}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def say(answers: TextIO, what: dict[str, object]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
