"""A row's bits do not depend on its company: random batches, cut at random places, at one and two threads."""

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from polyserve_kernels import ops
from support.quantized import quantized

Operation = Callable[[Tensor], Tensor]


def operations(channels: int, dtype: torch.dtype) -> dict[str, Operation]:
    """Operations on rows [T, channels] whose result for a row is that row's alone."""
    weight, bias = torch.randn(channels).to(dtype), torch.randn(channels).to(dtype)
    square, wide = torch.randn(channels, channels).to(dtype), torch.randn(1100, channels).to(dtype)
    few_bits = quantized(torch.randn(channels, channels), "int8")
    return {
        "matmul": lambda x: ops.matmul(x, square, bias),
        "matmul of several tiles": lambda x: ops.matmul(x, wide),
        "matmul in float32": lambda x: ops.matmul(x, square, out_dtype=torch.float32),
        "quantized_matmul": lambda x: ops.quantized_matmul(x, few_bits, bias),
        "rms_norm": lambda x: ops.rms_norm(x, weight, eps=1e-6),
        "rms_norm with a residual": lambda x: ops.rms_norm(x, weight, eps=1e-6, residual=x.float())[0],
        "layer_norm": lambda x: ops.layer_norm(x, weight, bias, eps=1e-6),
        "bias_gelu": lambda x: ops.bias_gelu(x, bias),
        "gated_silu": lambda x: ops.gated_silu(x),
        "gated_gelu": lambda x: ops.gated_gelu(x),
    }


def random_cuts(num_rows: int) -> list[int]:
    """Sizes of parts, the whole of one row among them."""
    cuts = sorted({0, 1, num_rows, *torch.randint(num_rows, (4,)).tolist()})
    return [b - a for a, b in pairwise(cuts)]


@pytest.mark.parametrize(
    ("backend", "channels"),
    [*product(["reference", "cpu"], [2, 66, 576, 1030]), ("triton", 66)],  # interpreted, and slow
    indirect=["backend"],
)
def test_a_row_has_the_same_bits_in_any_part_of_any_batch(backend, channels, dtype):
    thread_counts = (1,) if backend == "triton" else (1, 2, 3)
    for name, operation in operations(channels, dtype).items():
        for num_rows in (3, 70):
            x = (2 * torch.randn(num_rows, channels)).to(dtype)
            torch.set_num_threads(1)
            whole = operation(x)
            for threads in thread_counts:
                torch.set_num_threads(threads)
                parts = torch.cat([operation(part) for part in x.split(random_cuts(num_rows))])
                assert torch.equal(parts, whole), f"{name} of {num_rows} rows at {threads} threads"


def test_a_row_has_the_same_bits_wherever_it_stands(dtype, backend):
    for name, operation in operations(100, dtype).items():
        x = torch.randn(37, 100).to(dtype)
        order = torch.randperm(37)
        assert torch.equal(operation(x[order]), operation(x)[order]), name


def test_rotated_heads_have_the_same_bits_in_any_part(dtype, backend):
    q, angle = torch.randn(77, 3, 20).to(dtype), torch.randn(77, 10)
    whole, _ = ops.rotary(q, q, angle.cos(), angle.sin())
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rows = zip(q.split(11), angle.cos().split(11), angle.sin().split(11), strict=True)
        assert torch.equal(torch.cat([ops.rotary(x, x, cos, sin)[0] for x, cos, sin in rows]), whole)
