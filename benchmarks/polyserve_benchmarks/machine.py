"""What a figure was measured on: versions, machine, and the speeds at which it reads memory and multiplies.

Bytes and seconds. Sources: /proc/cpuinfo and sysconf, where the system has them.
"""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

from polyserve import __version__

READ_BYTES = 512 * 2**20  # several times the largest cache
READ_SECONDS = 1.0
MATRIX_SIZE = 2048


def versions() -> dict[str, str]:
    """Of what can change a figure."""
    return {"polyserve": __version__, "python": platform.python_version(), "torch": version("torch")}


def machine() -> dict[str, object]:
    return {
        "cpu": _cpu_name(),
        "cores": num_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
    }


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_bandwidth(num_threads: int) -> float:
    """Bytes a second at which this many threads read memory: the best of many tries, since neighbours only slow it."""
    import torch

    from polyserve_kernels import memory

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        data = memory.zeros((READ_BYTES // 8,), torch.int64)  # a sum of int64 has the fewest operations a byte
        data.fill_(1)  # every page is there before the clock runs
        best = float("inf")
        end = time.monotonic() + READ_SECONDS
        while time.monotonic() < end:
            start = time.perf_counter()
            data.sum()
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return READ_BYTES / best


def matrix_rate(num_threads: int) -> float:
    """Operations a second of a large product, at its best: what torch's own library makes of this processor.

    Of bfloat16 where the processor multiplies it, elsewhere of float32, as which it is multiplied there."""
    import torch

    from polyserve_kernels import processor

    dtype = torch.bfloat16 if processor.multiplies_bfloat16() else torch.float32
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        a, b = (torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype) for _ in range(2))
        torch.mm(a, b)
        best = float("inf")
        end = time.monotonic() + READ_SECONDS
        while time.monotonic() < end:
            start = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * MATRIX_SIZE**3 / best


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
