"""A row's bits do not depend on its company: random batches, cut at random places, at one and two threads."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from polyserve_kernels import ops

Operation = Callable[[Tensor], Tensor]


def operations(channels: int, dtype: torch.dtype) -> dict[str, Operation]:
    """Operations on rows [T, channels] whose result for a row is that row's alone."""
    weight, bias = torch.randn(channels).to(dtype), torch.randn(channels).to(dtype)
    square, wide = torch.randn(channels, channels).to(dtype), torch.randn(1100, channels).to(dtype)
    return {
        "matmul": lambda x: ops.matmul(x, square, bias),
        "matmul of several tiles": lambda x: ops.matmul(x, wide),
        "matmul in float32": lambda x: ops.matmul(x, square, out_dtype=torch.float32),
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


@pytest.mark.parametrize("channels", [2, 66, 576, 1030])
def test_a_row_has_the_same_bits_in_any_part_of_any_batch(channels, dtype):
    for name, operation in operations(channels, dtype).items():
        for num_rows in (3, 70):
            x = (2 * torch.randn(num_rows, channels)).to(dtype)
            torch.set_num_threads(1)
            whole = operation(x)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                parts = torch.cat([operation(part) for part in x.split(random_cuts(num_rows))])
                assert torch.equal(parts, whole), f"{name} of {num_rows} rows at {threads} threads"


def test_a_row_has_the_same_bits_wherever_it_stands(dtype):
    for name, operation in operations(100, dtype).items():
        x = torch.randn(37, 100).to(dtype)
        order = torch.randperm(37)
        assert torch.equal(operation(x[order]), operation(x)[order]), name


def test_rotated_heads_have_the_same_bits_in_any_part(dtype):
    q, angle = torch.randn(77, 3, 20).to(dtype), torch.randn(77, 10)
    whole, _ = ops.rotary(q, q, angle.cos(), angle.sin())
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rows = zip(q.split(11), angle.cos().split(11), angle.sin().split(11), strict=True)
        assert torch.equal(torch.cat([ops.rotary(x, x, cos, sin)[0] for x, cos, sin in rows]), whole)
