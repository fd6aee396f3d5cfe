"""Everything that a GPU can show, in one command and less than nine minutes.

    python -m polyserve_benchmarks.gpu --out FILE      in the repository's root
operations   the time of every operation, forward and backward, beside torch and, where installed, flash-attn and Liger
decode       tokens a second of PolyLM-13B's shape with random weights at 1, 8 and 32 streams
tests        every test with the marker `gpu`, on CUDA tensors
Each part is a process of its own with its share of the time and what the parts before it left of theirs: one that fails
or takes too long leaves what it had, and what it failed at is said. FILE gets the results as JSON, which is also the
last line that is printed. Without a GPU nothing runs, and the exit code is 2; it is 1 if anything failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from polyserve_benchmarks.machine import machine, versions

SECONDS = {"operations": 150, "decode": 200, "tests": 170}  # and some to spare, of 540
TEST_PROCESSES = min(16, os.cpu_count() or 1)  # what they wait for is mostly Triton's compiler
LAST_SECONDS = 20  # of the tests' time, in which none begins: for a report
MODULES = {"operations": "polyserve_benchmarks.gpu_measure", "decode": "polyserve_benchmarks.gpu_decode"}
PYTHON = [sys.executable, "-m"]


@dataclass(frozen=True, slots=True)
class Part:
    """What a part of the run found."""

    results: list[dict[str, Any]]
    failures: list[str]
    seconds: float


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(prog="polyserve_benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS), help="which; default: all")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch finds no GPU here: nothing was measured")
        sys.exit(2)
    document: dict[str, Any] = {"benchmark": "gpu", "device": device(), "machine": machine(), "versions": versions()}
    failures = []
    spare = 0.0
    for name in options.parts:
        print(f"== {name}", flush=True)
        part = run(name, SECONDS[name] + spare)
        spare = max(0.0, spare + SECONDS[name] - part.seconds)
        document[name] = {"results": part.results, "failures": part.failures, "seconds": round(part.seconds, 1)}
        failures += part.failures
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for failure in failures:
        print(f"failed: {failure}")
    print(json.dumps(document))
    sys.exit(1 if failures else 0)


def device() -> dict[str, object]:
    import torch

    properties = torch.cuda.get_device_properties()
    return {
        "name": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def run(part: str, seconds: float) -> Part:
    return run_tests(seconds) if part == "tests" else run_module(MODULES[part], seconds)


def run_tests(limit: float, *arguments: str) -> Part:
    """Those with the marker `gpu`; arguments: of pytest, instead of all tests."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [*PYTHON, "pytest", "-q", "-m", "gpu", f"--numprocesses={TEST_PROCESSES}", f"--junitxml={report}"]
        command += [f"--session-timeout={limit - LAST_SECONDS}", *(arguments or ["tests"])]
        code, seconds = _run(command, limit, {"POLYSERVE_TEST_DEVICE": "cuda"})
        if not report.exists():
            return Part([], [f"the tests ended with {code} and no report"], seconds)
        results, failures = read_test_report(report.read_text(encoding="utf-8"))
    if seconds > limit - LAST_SECONDS or code != (1 if failures else 0):
        failures.append(f"the tests ended with {code} after {seconds:.0f} s, maybe before all had run")
    return Part(results, failures, seconds)


def read_test_report(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Counts, and the names of tests that failed, from pytest's JUnit file."""
    cases = list(ElementTree.fromstring(text).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    counts = {"passed": len(cases) - len(failed) - len(skipped), "failed": len(failed), "skipped": len(skipped)}
    return [counts], [f"{case.get('classname')}.{case.get('name')}" for case in failed]


def run_module(module: str, seconds: float) -> Part:
    """Run a module that writes lines of JSON. If it fails at a case (`begins`), it runs again from the next one on."""
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    begin, end = time.monotonic(), time.monotonic() + seconds
    first = 0
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "results"
            code, _ = _run([*PYTHON, module, str(file), str(first)], end - time.monotonic(), {})
            lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
        results += [line for line in lines if "begins" not in line]
        if code == 0:
            break
        begun = [line for line in lines if "begins" in line]
        why = f"{module} ran out of its {seconds:.0f} s" if code is None else f"{module} ended with {code}"
        failures.append(f"{why} at {begun[-1]['what']}" if begun else why)
        if not begun:
            break
        first = begun[-1]["begins"] + 1
    return Part(results, failures, time.monotonic() - begin)


def _run(command: list[str], seconds: float, environment: dict[str, str]) -> tuple[int | None, float]:
    """The exit code, or None if it was stopped after so many seconds, and how long it took. It prints where we do."""
    begin = time.monotonic()
    try:
        code = subprocess.run(command, timeout=seconds, env={**os.environ, **environment}, check=False).returncode
    except subprocess.TimeoutExpired:
        code = None
    return code, time.monotonic() - begin


if __name__ == "__main__":
    main()
