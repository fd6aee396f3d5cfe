"""Compile every shipped call for sm_80, sm_90 and sm_100, which needs no GPU, then write the report or apply the rules.

    python -m polyserve_kernels.triton.report            write kernels/README.md, kernels/REPORT.md and the JSON
    python -m polyserve_kernels.triton.report --check    write nothing; the exit code is 1 if a rule is broken
    python -m polyserve_kernels.triton.report --only paged_decode rms_norm      show these on the terminal
Run in the repository's root. What was compiled before comes from Triton's cache (TRITON_CACHE_DIR).
"""

import argparse
import sys
import time
from pathlib import Path

import triton

from polyserve_kernels.triton.report import tables
from polyserve_kernels.triton.report.rows import compile_rows
from polyserve_kernels.triton.report.rules import faults
from polyserve_kernels.triton.shipped import shipped

README = Path("kernels/README.md")
REPORT = Path("kernels/REPORT.md")
JSON = Path(f"benchmarks/results/kernels-triton-{triton.__version__}.json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="polyserve_kernels.triton.report", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, apply the rules")
    parser.add_argument("--only", nargs="+", metavar="OPERATION", help="show these operations, write nothing")
    options = parser.parse_args()
    start = time.monotonic()
    calls = [call for call in shipped() if options.only is None or call.operation.__name__ in options.only]
    rows = compile_rows(calls)
    found = faults(rows)
    if options.only:
        print(tables.report(rows))
    elif not options.check:
        README.write_text(tables.between_markers(README.read_text("utf-8"), tables.summary(rows)), "utf-8")
        REPORT.write_text(tables.report(rows), "utf-8")
        JSON.parent.mkdir(exist_ok=True)
        JSON.write_text(tables.as_json(rows), "utf-8")
    for fault in found:
        print(fault)
    print(f"{len(rows)} calls compiled in {time.monotonic() - start:.0f} s, {len(found)} faults")
    sys.exit(1 if found and options.check else 0)


if __name__ == "__main__":
    main()
