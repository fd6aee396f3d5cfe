"""What a shipped call becomes on an architecture, and what it would take at best on the GPUs that have it.

Roofline   the larger of bytes over bandwidth and flops over the rate of the units that the code uses
Source     data sheets of A100 80 GB SXM, H100 SXM and H200 SXM, dense rates
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polyserve_kernels.triton.ahead_of_time import Launch, compile_calls
from polyserve_kernels.triton.shipped.call import Shipped


@dataclass(frozen=True, slots=True)
class Gpu:
    arch: int
    bytes_per_second: float
    matrix_flops: float  # a second, of bfloat16 and float16 operands
    vector_flops: float  # a second, of float32


GPUS = {
    "A100": Gpu(80, 2.0e12, 312e12, 19.5e12),
    "H100": Gpu(90, 3.35e12, 989e12, 67e12),
    "H200": Gpu(90, 4.8e12, 989e12, 67e12),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One shipped call, compiled for one architecture."""

    call: Shipped
    arch: int
    least_bytes: int
    launches: tuple[Launch, ...]

    @property
    def title(self) -> str:
        return f"{self.call.name} ({self.call.configuration}) on sm_{self.arch}"

    @property
    def moved_bytes(self) -> int:
        """By all launches, with what they hand from one to the next."""
        return sum(launch.argument_bytes for launch in self.launches)

    @property
    def matrix(self) -> set[str]:
        """The matrix instructions of all its launches."""
        return {instruction for launch in self.launches for instruction in launch.code.matrix}

    def roofline_us(self, gpu: Gpu) -> float:
        rate = gpu.matrix_flops if self.matrix else gpu.vector_flops
        return max(self.least_bytes / gpu.bytes_per_second, self.call.flops / rate) * 1e6


def distinct(launches: Sequence[Launch]) -> list[tuple[int, Launch]]:
    """Launches of the same code once, with how many there are, though their grids may differ."""
    found: list[tuple[int, Launch]] = []
    for launch in launches:
        for i, (count, other) in enumerate(found):
            if (other.kernel, other.code) == (launch.kernel, launch.code):
                found[i] = count + 1, other
                break
        else:
            found.append((1, launch))
    return found


def compile_rows(calls: Sequence[Shipped]) -> list[Row]:
    """Each call compiled for each of its architectures."""
    rows = [(call, arch) for call in calls for arch in call.architectures]
    least_bytes: dict[str, int] = {}
    work = {}
    for call, arch in rows:
        title = Row(call, arch, 0, ()).title
        assert title not in work, f"two shipped calls are {title}"
        work[title] = arch, _noting(least_bytes, title, call)
    launches = compile_calls(work)
    return [
        Row(call, arch, least_bytes[title], tuple(launches[title]))
        for (call, arch), title in zip(rows, work, strict=True)
    ]


def _noting(least_bytes: dict[str, int], title: str, call: Shipped) -> Callable[[], None]:
    def run() -> None:
        least_bytes[title] = call.run()

    return run
