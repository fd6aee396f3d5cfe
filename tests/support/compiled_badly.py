"""Kernels with known faults, compiled in a process of its own: `python -m support.compiled_badly`, in tests/.

Prints JSON: for each operation below and each architecture its faults and its code, then the exit code of the check.
The same product of x [T, K] and w [N, K], in bfloat16, each time:
good           128 x 128 tiles, pipelined            spilling     128 x 256 tiles in 4 warps: too many registers
few_rows       16-row tiles, too few for wgmma       unpipelined  one stage: loads wait for products
two_ways       16-row tiles where `good`'s bits are promised
"""

import contextlib
import io
import json
import sys
from dataclasses import asdict

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyserve_kernels.triton.launch import launch
from polyserve_kernels.triton.product import product_tile
from polyserve_kernels.triton.report import __main__ as command
from polyserve_kernels.triton.report import tables
from polyserve_kernels.triton.report.rows import compile_rows
from polyserve_kernels.triton.report.rules import faults
from polyserve_kernels.triton.shipped.call import Shipped


@triton.jit
def _product_kernel(
    x_ptr, w_ptr, y_ptr, T, N, K, x_stride, w_stride, y_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    y = product_tile(x_ptr, w_ptr, rows, cols, T, N, K, x_stride, w_stride, BLOCK_M, BLOCK_N, BLOCK_K)
    mask = (rows < T)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows.to(tl.int64)[:, None] * y_stride + cols[None, :], y.to(tl.bfloat16), mask=mask)


def _multiply(x: Tensor, w: Tensor, block_m: int, block_n: int, num_stages: int) -> Tensor:
    (T, K), N = x.shape, w.shape[0]
    y = x.new_empty(T, N)
    launch(
        _product_kernel, (triton.cdiv(T, block_m), triton.cdiv(N, block_n)), x, w, y, T, N, K, K, K, N,
        num_warps=4, num_stages=num_stages, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=64,
    )  # fmt: skip
    return y


def good(x: Tensor, w: Tensor) -> Tensor:
    return _multiply(x, w, 128, 128, 3)


def spilling(x: Tensor, w: Tensor) -> Tensor:
    return _multiply(x, w, 128, 256, 3)


def few_rows(x: Tensor, w: Tensor) -> Tensor:
    return _multiply(x, w, 16, 128, 3)


def unpipelined(x: Tensor, w: Tensor) -> Tensor:
    return _multiply(x, w, 128, 128, 1)


def two_ways(x: Tensor, w: Tensor) -> Tensor:
    return _multiply(x, w, 16, 128, 3)


def _calls() -> list[Shipped]:
    x, w = (torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta") for _ in range(2))
    return [
        Shipped(
            operation=operation,
            configuration="4096 rows",
            args=(x, w),
            flops=2 * 4096**3,
            many_rows=operation is not two_ways,
            products="the product" if operation in (good, two_ways) else None,
            architectures=(80, 90),
        )
        for operation in (good, spilling, few_rows, unpipelined, two_ways)
    ]


def _check(calls: list[Shipped]) -> int | str | None:
    """The exit code of `make kernels-check` if these calls were the shipped ones."""
    command.shipped = lambda: calls
    sys.argv = ["report", "--check"]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            command.main()
        except SystemExit as stop:
            return stop.code
    return "came back"


def main() -> None:
    calls = _calls()
    rows = compile_rows(calls)
    print(
        json.dumps(
            {
                "faults": faults(rows),
                "code": {f"{row.call.name} {row.arch}": asdict(row.launches[0].code) for row in rows},
                "summary": tables.summary(rows),
                "report": tables.report(rows),
                "json": json.loads(tables.as_json(rows)),
                "least_bytes": rows[0].least_bytes,
                "moved_bytes": rows[0].moved_bytes,
                "exit_code_of_good": _check(calls[:1]),
                "exit_code_of_spilling": _check(calls[:2]),
            }
        )
    )


if __name__ == "__main__":
    main()
