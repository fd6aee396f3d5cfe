"""What the compiled kernels must have. A rule's breach is a sentence that names the call and the kernel.

No kernel spills or asks for more shared memory than a block can have. Loops that hold matrix instructions on 16-bit
operands are pipelined with asynchronous copies. On sm_90 many rows are multiplied by wgmma (HGMMA). Calls whose results
must agree bit for bit use one matrix instruction on an architecture, however many rows they have.
"""

import re
from collections.abc import Iterator, Sequence

from polyserve_kernels.triton.machine_code import LIMITS
from polyserve_kernels.triton.report.rows import Row, distinct


def faults(rows: Sequence[Row]) -> list[str]:
    return [
        *(fault for row in rows for fault in (*_resources(row), *_pipelining(row), *_wgmma(row))),
        *_one_instruction(rows),
    ]


def kind(instruction: str) -> str:
    """A matrix instruction without its width, which leaves the sums as they are: HGMMA.64x128x16 is HGMMA.64xNx16."""
    return re.sub(r"^(HGMMA\.64x)\d+", r"\1N", instruction)


def _resources(row: Row) -> Iterator[str]:
    if not row.launches:
        yield f"{row.title} launches no kernel"
    limit = LIMITS[row.arch].block_shared_bytes
    for _, launch in distinct(row.launches):
        if launch.code.spill_bytes:
            yield f"{row.title}: {launch.kernel} spills {launch.code.spill_bytes} bytes a thread"
        if launch.code.shared_bytes > limit:
            yield f"{row.title}: {launch.kernel} takes {launch.code.shared_bytes} bytes of shared memory of {limit}"


def _pipelining(row: Row) -> Iterator[str]:
    if row.call.dtype.itemsize != 2:
        return
    for _, launch in distinct(row.launches):
        if any(not loop.async_copies for loop in launch.code.loops):
            yield f"{row.title}: {launch.kernel} has a loop of matrix instructions without asynchronous copies"


def _wgmma(row: Row) -> Iterator[str]:
    if row.arch != 90 or not row.call.many_rows or row.call.dtype.itemsize != 2:
        return
    if any(not instruction.startswith("HGMMA") for instruction in row.matrix) or not row.matrix:
        yield f"{row.title} multiplies with {_words(row.matrix)}, not with HGMMA alone"


def _one_instruction(rows: Sequence[Row]) -> Iterator[str]:
    groups: dict[tuple[str, int], dict[str, list[Row]]] = {}
    for row in rows:
        if row.call.products is not None:
            words = _words({kind(instruction) for instruction in row.matrix})
            groups.setdefault((row.call.products, row.arch), {}).setdefault(words, []).append(row)
    for (products, arch), by_words in groups.items():
        if len(by_words) > 1:
            ways = "; ".join(f"{words} in {members[0].call.name}" for words, members in by_words.items())
            yield f"{products} on sm_{arch} is multiplied in more than one way: {ways}"


def _words(instructions: set[str]) -> str:
    return " and ".join(sorted(instructions)) or "no matrix instruction"
