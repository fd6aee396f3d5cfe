"""In the library of `make sanitize` a read behind an array ends the process, and so does a sum that overflows."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif("POLYSERVE_CPU_LIBRARY" not in os.environ, reason="make sanitize runs these")

# One row of a weight [rows, 64], as torch keeps it, of which there is memory for one.
UNPACK = """
import torch
from polyserve_kernels.cpu.library import Unpack, Weight, call, filled
row, stride = {row}, {stride}
data, y = torch.zeros(64), torch.zeros(64)
weight = filled(Weight, data=data, rows=row + 1, channels=64, stride=stride, dtype=data.dtype)
call("ps_unpack", Unpack, weights=weight, num_weights=1, rows=torch.tensor([row]), num_rows=1, y=y)
print("the end")
"""


def unpack(row: int, stride: int) -> subprocess.CompletedProcess[str]:
    code = UNPACK.format(row=row, stride=stride)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_what_is_right_passes():
    assert unpack(0, 64).stdout == "the end\n"


@pytest.mark.parametrize(
    ("row", "stride", "fault"),
    [(1, 64, "heap-buffer-overflow"), (2**40, 2**40, "signed integer overflow")],
)
def test_what_is_wrong_is_caught(row, stride, fault):
    done = unpack(row, stride)
    assert done.returncode != 0
    assert fault in done.stderr
