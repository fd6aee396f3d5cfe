"""How the threads of attention's compiled kernels hold a row of scores that they sum: prints it as JSON.

{"varlen 80 64": ["..."], ...}: for each call, architecture and head size the layouts of what is summed along keys, but
for how many warps share the rows. Two kernels with one layout sum a row in one order.
Needs a process without TRITON_INTERPRET, and no GPU.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.dispatch import triton_to_compile
from polyserve_kernels.triton.ahead_of_time import _no_driver
from polyserve_kernels.triton.launch import observed
from polyserve_kernels.types import BlockCache

HEADS, KV_HEADS = 8, 2
SIZES = (64, 256)


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def integers(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.int32)


def varlen(size: int) -> None:
    q, k = tensor(512, HEADS, size), tensor(512, KV_HEADS, size)
    ops.attention_varlen(q, k, k, integers(9), scale=0.1)


def prefill(size: int) -> None:
    q, blocks = tensor(512, HEADS, size), tensor(64, 16, KV_HEADS, size)
    ops.paged_prefill(q, BlockCache(blocks, blocks), integers(8, 64), integers(8), integers(9), scale=0.1)


def decode(size: int, num_seqs: int = 4096) -> None:
    """By default so many sequences that each has one program."""
    q, blocks = tensor(num_seqs, HEADS, size), tensor(64, 16, KV_HEADS, size)
    ops.paged_decode(q, BlockCache(blocks, blocks), integers(num_seqs, 64), integers(num_seqs), scale=0.1)


def shared_decode(size: int) -> None:
    decode(size, num_seqs=8)


def layouts(arch: int, call: Callable[[int], None], size: int) -> list[str]:
    found: set[str] = set()

    def observer(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        text = kernel.warmup(*args, grid=grid, **options).asm["ttgir"]
        for name in re.findall(r"\(tensor<\d+x\d+xf32, (#\w+)>\) ->", text):
            definition = re.search(rf"^{name} = (.*)$", text, re.MULTILINE)
            assert definition is not None
            found.add(re.sub(r"warpsPerCTA = \[\d+, ", "warpsPerCTA = [rows, ", definition[1]))

    with observed(arch, observer):
        call(size)
    return sorted(found)


def main() -> None:
    told = {}
    with triton_to_compile(), _no_driver() as stand_in:
        for arch in (80, 90, 100):
            stand_in.arch = arch
            for call in (varlen, prefill, decode, shared_decode):
                for size in SIZES:
                    told[f"{call.__name__} {arch} {size}"] = layouts(arch, call, size)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
