"""Time every operation on this GPU: `python -m polyserve_benchmarks.gpu_measure RESULTS [FIRST]`, a part of `gpu.py`.

Results go to a file as lines of JSON, one when a case begins and one for each time, so that nothing is lost if a case
ends the process; FIRST is the number of the case to begin with, for the process after that.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from polyserve_benchmarks import gpu_attention, gpu_operations
from polyserve_benchmarks.gpu_cases import Case, Sizes, both
from polyserve_benchmarks.gpu_timing import Limits, Timer, measure_limits

OURS = "polyserve"


@dataclass(frozen=True, slots=True)
class Measurement:
    operation: str
    configuration: str
    passes: str  # "forward" or "both": forward and backward
    library: str
    microseconds: float
    gigabytes_per_second: float  # of what the case must at least move
    teraflops: float  # a second
    percent_of_limit: float

    def line(self) -> str:
        case = f"{self.operation:18} {self.configuration:52} {self.passes:8} {self.library:11}"
        speed = f"{self.gigabytes_per_second:6.0f} GB/s {self.teraflops:6.1f} TFLOP/s {self.percent_of_limit:5.1f} %"
        return f"{case} {self.microseconds:10.1f} us {speed}"


def main() -> None:
    results, first = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    timer = Timer()
    limits = measure_limits(timer)
    makers = [*gpu_attention.cases(Sizes(), "cuda"), *gpu_operations.cases(Sizes(), "cuda")]
    with results.open("a", encoding="utf-8") as file:

        def write(**entry: object) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        write(limits=asdict(limits))
        for number, make in enumerate(makers[first:], start=first):
            torch.manual_seed(0)
            case = make()
            write(begins=number, what=f"{case.name}, {case.configuration}")
            for measurement in measurements(case, timer.microseconds, limits):
                print(measurement.line(), flush=True)
                write(**asdict(measurement))
            del case


def measurements(
    case: Case, microseconds: Callable[[Callable[[], object]], float], limits: Limits
) -> Iterator[Measurement]:
    """Ours, then each peer: the forward pass and, where gradients are asked for, both passes."""
    for library, call in {OURS: case.ours, **case.peers}.items():
        with torch.no_grad():
            yield _measurement(case, "forward", library, microseconds(call), limits)
        if case.leaves:
            yield _measurement(case, "both", library, microseconds(both(call, case.leaves)), limits)


def _measurement(case: Case, passes: str, library: str, time_us: float, limits: Limits) -> Measurement:
    num_bytes, flops = (case.num_bytes, case.flops) if passes == "forward" else (case.both_bytes, case.both_flops)
    return Measurement(
        operation=case.name,
        configuration=case.configuration,
        passes=passes,
        library=library,
        microseconds=time_us,
        gigabytes_per_second=num_bytes / time_us / 1e3,
        teraflops=flops / time_us / 1e6,
        percent_of_limit=100 * limits.microseconds(num_bytes, flops, case.dtype) / time_us,
    )


if __name__ == "__main__":
    main()
