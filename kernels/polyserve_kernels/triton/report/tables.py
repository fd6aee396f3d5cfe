"""The report as text: a summary by operation for README.md, every row for REPORT.md, and everything as JSON.

Summary      the worst of all calls of an operation, sm_80 / sm_90 / sm_100
registers    a thread   spills: bytes a thread   shared: KiB a block   occupancy: percent of a multiprocessor's warps
copies       asynchronous copies in the loop over keys or over K that has fewest of them
moved        bytes of all tensors that the launches take, over the least that the call must move; a kernel that gathers
             a few rows of a tensor is counted with all of it
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields

import triton

from polyserve_kernels.triton.ahead_of_time import ARCHITECTURES, Launch
from polyserve_kernels.triton.machine_code import Code, Loop
from polyserve_kernels.triton.report.rows import GPUS, Row, distinct
from polyserve_kernels.triton.report.rules import kind

_RESOURCES = ("registers", "spills", "shared, KiB", "occupancy, %", "matrix instructions", "copies")
_LAUNCH_FIELDS = ["kernel", "count", "num_warps", "num_stages", *(field.name for field in fields(Code))]
_LOOP_FIELDS = [field.name for field in fields(Loop)]
_INTRODUCTION = f"""# The kernels as Triton {triton.__version__} compiles them

Written by `make kernels-report`; [README.md](README.md) says what it is for. One row for each shipped call and
architecture, with the kernels that it launches one after another. MB: the least that the call must move; moved: times
that, of all tensors that its launches take, though some are gathered from and not read whole. Roofline: microseconds
at best, on an A100 (sm_80), or on an H100 and an H200 (sm_90). Nothing here was measured on a GPU.
"""
BEGIN, END = "<!-- written by make kernels-report -->", "<!-- end -->"


def summary(rows: Sequence[Row]) -> str:
    """One line an operation."""
    lines = _head("operation", "calls", *_RESOURCES, "moved, at most")
    for name in dict.fromkeys(row.call.name for row in rows):
        own = [row for row in rows if row.call.name == name]
        by_arch = [[launch for row in own if row.arch == arch for launch in row.launches] for arch in ARCHITECTURES]
        cells = [
            f"`{name}`",
            str(len({row.call.configuration for row in own})),
            _by_arch(by_arch, lambda launches: str(max(launch.code.registers for launch in launches))),
            str(max((launch.code.spill_bytes for launches in by_arch for launch in launches), default=0)),
            _by_arch(by_arch, lambda launches: _kib(max(launch.code.shared_bytes for launch in launches))),
            _by_arch(by_arch, lambda launches: _percent(min(launch.code.occupancy for launch in launches))),
            _by_arch(by_arch, _kinds),
            _by_arch(by_arch, _fewest_copies),
            f"{max(_moved(row) for row in own):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(rows: Sequence[Row]) -> str:
    """Every row, a table for each operation."""
    parts = [_INTRODUCTION]
    head = _head("call", "sm", "kernels", "warps, stages", *_RESOURCES, "MB", "moved, at most", "GFLOP", "roofline, µs")
    for name in dict.fromkeys(row.call.name for row in rows):
        lines = [_line(row) for row in rows if row.call.name == name]
        parts.append("\n".join([f"## `{name}`\n", *head, *lines, ""]))
    return "\n".join(parts)


def as_json(rows: Sequence[Row]) -> str:
    """A line for each row. Launches and their loops are lists, whose fields are named once."""
    entries = [
        {
            "operation": row.call.name,
            "configuration": row.call.configuration,
            "arch": row.arch,
            "flops": row.call.flops,
            "least_bytes": row.least_bytes,
            "moved_bytes": row.moved_bytes,
            "roofline_us": {name: round(row.roofline_us(gpu), 2) for name, gpu in GPUS.items() if gpu.arch == row.arch},
            "launches": [_facts(count, launch) for count, launch in distinct(row.launches)],
        }
        for row in rows
    ]
    lines = ",\n".join(json.dumps(entry) for entry in entries)  # a line each: readable, and small in a diff
    head = {"triton": triton.__version__, "launch_fields": _LAUNCH_FIELDS, "loop_fields": _LOOP_FIELDS}
    return f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n'


def _facts(count: int, launch: Launch) -> list[object]:
    """Of `count` launches of the same code, in the order of _LAUNCH_FIELDS."""
    code = {**asdict(launch.code), "loops": [list(asdict(loop).values()) for loop in launch.code.loops]}
    return [launch.kernel, count, launch.num_warps, launch.num_stages, *code.values()]


def between_markers(text: str, new: str) -> str:
    """`text` with `new` in place of what stands between the report's markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there must be a line {BEGIN!r} and, after it, a line {END!r}")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def _line(row: Row) -> str:
    def each(of_launch: Callable[[Launch], str]) -> str:
        values = [of_launch(launch) for _, launch in launches]
        return values[0] if len(set(values)) == 1 else ", ".join(values)

    launches = distinct(row.launches)

    cells = [
        row.call.configuration,
        str(row.arch),
        ", ".join(f"{count} x " * (count > 1) + _short(launch.kernel) for count, launch in launches),
        each(lambda launch: f"{launch.num_warps}, {launch.num_stages}"),
        each(lambda launch: str(launch.code.registers)),
        each(lambda launch: str(launch.code.spill_bytes)),
        each(lambda launch: _kib(launch.code.shared_bytes)),
        each(lambda launch: _percent(launch.code.occupancy)),
        "; ".join(f"{count} {name}" for _, launch in launches for name, count in launch.code.matrix.items()) or "none",
        _fewest_copies(row.launches),
        f"{row.least_bytes / 1e6:.3g}",
        f"{_moved(row):.2f}",
        f"{row.call.flops / 1e9:.3g}",
        ", ".join(f"{row.roofline_us(gpu):.3g}" for gpu in GPUS.values() if gpu.arch == row.arch),
    ]
    return f"| {' | '.join(cells)} |"


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _by_arch(by_arch: Sequence[Sequence[Launch]], words: Callable[[Sequence[Launch]], str]) -> str:
    """What `words` says of each architecture, said once where it is the same of all."""
    values = [words(launches) if launches else "-" for launches in by_arch]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def _kinds(launches: Iterable[Launch]) -> str:
    """Without their dtypes: calls of one operation in bfloat16 and in float16 differ in nothing else."""
    names = {re.sub(r"\.F32(\.BF16)?$", "", kind(name)) for launch in launches for name in launch.code.matrix}
    return ", ".join(sorted(names)) or "none"


def _fewest_copies(launches: Iterable[Launch]) -> str:
    counts = [loop.async_copies for launch in launches for loop in launch.code.loops]
    return str(min(counts)) if counts else "no loop"


def _moved(row: Row) -> float:
    return row.moved_bytes / row.least_bytes


def _short(kernel: str) -> str:
    return f"`{kernel.strip('_').removesuffix('_kernel')}`"


def _kib(num_bytes: int) -> str:
    return f"{num_bytes / 1024:.0f}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f}"
