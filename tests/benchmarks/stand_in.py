"""An engine for tests of the comparison: it answers at once, and writes down when it was asked and who was stopped.

Loaded by `polyserve_benchmarks.compare.driver` as engines/*.py are; NAME, DIARY and FAULT are put in by `write_engine`.
DIARY is a folder: NAME.pid holds an engine's process, `turns` a line for each request: NAME and the engines that run.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NAME = "@NAME@"
DIARY = Path("@DIARY@")
FAULT = "@FAULT@"  # "", or when to fail: loading, warm-up, round, length, exit; helper: a process of its own that stays
WARM_UP_TOKENS = 4


class StandIn:
    version = "1.0"

    def __init__(self, job: dict[str, Any]) -> None:
        self.settings = {"threads": job["threads"]}

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        measured = num_tokens > WARM_UP_TOKENS
        with (DIARY / "turns").open("a") as turns:
            turns.write(" ".join([NAME, str(len(prompts)), str(num_tokens), *running()]) + "\n")
        if FAULT == "warm-up" or (FAULT == "round" and measured):
            raise RuntimeError("out of luck")
        if FAULT == "exit" and measured:
            print("a last word", file=sys.stderr)
            os._exit(3)
        wanted = num_tokens - 1 if FAULT == "length" and measured else num_tokens
        return [[sum(prompt) % 97] * wanted for prompt in prompts]


def running() -> list[str]:
    """Other engines that are neither held by a signal nor at an end."""
    others = [file for file in sorted(DIARY.glob("*.pid")) if file.stem != NAME]
    return [file.stem for file in others if state_of(file.read_text()) not in ("T", "Z", "")]


def state_of(process: str) -> str:
    stat = Path("/proc", process, "stat")
    return stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else ""


def load(job: dict[str, Any]) -> StandIn:
    if FAULT == "loading":
        raise ValueError("no such model")
    print("a line on standard output that is not the protocol's")
    (DIARY / f"{NAME}.pid").write_text(str(os.getpid()))
    if FAULT == "helper":
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (DIARY / "helper").write_text(str(helper.pid))
    return StandIn(job)
