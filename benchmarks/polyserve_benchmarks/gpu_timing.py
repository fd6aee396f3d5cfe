"""How long a call takes on a GPU, and what the GPU could do at best: both measured in the same run.

Time      the median of many calls between CUDA events, after warm-up; before each call the L2 cache is overwritten, and
          the GPU is kept busy for as long as Python needs to launch the call, so that launching is not what is measured
Limits    copying 1 GiB (each byte read and written), and products of square matrices by cuBLAS
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UP_CALLS = 3
MIN_CALLS, MAX_CALLS = 10, 100
BUSY_CYCLES = 1_000_000  # about half a millisecond
COPY_BYTES = 2**30
PRODUCT_SIZE = 8192


@dataclass(frozen=True, slots=True)
class Limits:
    """What this GPU reached in this run."""

    bytes_per_second: float
    bfloat16_flops: float  # a second
    float32_flops: float

    def microseconds(self, num_bytes: int, flops: int, dtype: torch.dtype) -> float:
        """The least time for so many bytes and floating-point operations."""
        rate = self.float32_flops if dtype == torch.float32 else self.bfloat16_flops
        return 1e6 * max(num_bytes / self.bytes_per_second, flops / rate)


class Timer:
    """Measures calls on the current GPU."""

    def __init__(self) -> None:
        cache_bytes = torch.cuda.get_device_properties().L2_cache_size
        self._flushed = torch.empty(2 * cache_bytes, dtype=torch.int8, device="cuda")

    def microseconds(self, call: Callable[[], object], *, seconds: float = 0.25) -> float:
        """Median time of `call`; about `seconds` are spent on it, besides compiling what it launches."""
        for _ in range(WARM_UP_CALLS):
            call()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        self._measure(call)
        num_calls = int(seconds / (time.perf_counter() - begin))
        times = [self._measure(call) for _ in range(min(max(num_calls, MIN_CALLS), MAX_CALLS))]
        return statistics.median(times)

    def _measure(self, call: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._flushed.zero_()
        torch.cuda._sleep(BUSY_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        return 1e3 * float(start.elapsed_time(end))


def measure_copy(timer: Timer) -> float:
    """Bytes a second, read and written, of a large copy."""
    source, copy = (torch.empty(COPY_BYTES, dtype=torch.int8, device="cuda") for _ in range(2))
    return 2 * COPY_BYTES / timer.microseconds(lambda: copy.copy_(source)) * 1e6


def measure_limits(timer: Timer) -> Limits:
    return Limits(measure_copy(timer), *(_product_flops(timer, dtype) for dtype in (torch.bfloat16, torch.float32)))


def _product_flops(timer: Timer, dtype: torch.dtype) -> float:
    a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device="cuda").to(dtype) for _ in range(2))
    return 2 * PRODUCT_SIZE**3 / timer.microseconds(lambda: a @ b) * 1e6
