"""The loss under a large vocabulary holds no logits: what it takes beyond gradients does not grow with tokens."""

import sys

import pytest
import torch

from polyserve_benchmarks.loss_memory import MIB, measure, peak_of
from polyserve_kernels import dispatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
SIZES = {"vocab_size": 20_000, "hidden_size": 32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_beyond_the_gradients_does_not_grow_with_tokens(dtype):
    with dispatch.use_backend("cpu"):
        measure(1024, **SIZES, dtype=dtype)  # buffers of threads and allocator
        few, many = (measure(tokens, **SIZES, dtype=dtype) for tokens in (1024, 8192))
    grown_logits = many.logits_bytes - few.logits_bytes  # 547 MiB
    assert many.more_bytes - few.more_bytes < 16 * MIB < grown_logits / 30


def test_the_peak_counts_what_is_gone_again():
    def work() -> None:
        torch.ones(64 * MIB, dtype=torch.uint8)

    assert 60 * MIB < peak_of(work) < 72 * MIB
