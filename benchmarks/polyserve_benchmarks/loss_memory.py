"""How much memory the training loss takes under a large vocabulary: `python -m polyserve_benchmarks.loss_memory`.

Forward and backward of `linear_cross_entropy` at each number of tokens. What counts is the most that the process holds
meanwhile above what it held before, when hidden states and weight were there (Linux: VmHWM, which is reset first).
expected   the gradients: of the weight [V, C], and of hidden states [T, C], in float32 while they are summed
more       what is left, which logits [T, V] would make grow with T
"""

import argparse
import gc
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from polyserve_benchmarks.machine import machine, num_cores, versions
from polyserve_kernels import ops

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Usage:
    tokens: int
    peak_bytes: int
    expected_bytes: int
    logits_bytes: int  # in float32, if they existed

    @property
    def more_bytes(self) -> int:
        return self.peak_bytes - self.expected_bytes


def measure(tokens: int, *, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> Usage:
    """One loss with its gradients, of random numbers."""
    numbers = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, generator=numbers).to(dtype).requires_grad_()
    weight = (torch.randn(vocab_size, hidden_size, generator=numbers) * hidden_size**-0.5).to(dtype).requires_grad_()
    weight.grad_dtype = torch.float32
    targets = torch.randint(vocab_size, (tokens,), generator=numbers)

    def loss() -> None:
        losses = ops.linear_cross_entropy(hidden, weight, targets, ignore_index=-100)
        losses.mean().backward()  # type: ignore[no-untyped-call]

    rounded = 0 if dtype == torch.float32 else hidden.nbytes
    expected = 4 * weight.numel() + 4 * hidden.numel() + rounded
    return Usage(tokens, peak_of(loss), expected, 4 * tokens * vocab_size)


def peak_of(work: Callable[[], None]) -> int:
    """The most that the process holds during some work, above what it held before, in bytes."""
    gc.collect()  # what is garbage already shall not go meanwhile
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    [kib] = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) * 1024


def run(tokens: list[int], *, vocab_size: int, hidden_size: int, dtype: str) -> dict[str, Any]:
    measure(16, vocab_size=1024, hidden_size=hidden_size, dtype=getattr(torch, dtype))  # what the first call loads
    print(f"{'tokens':>8}{'peak MiB':>10}{'expected':>10}{'more':>8}{'logits would be':>17}")
    usages = []
    for count in tokens:
        usage = measure(count, vocab_size=vocab_size, hidden_size=hidden_size, dtype=getattr(torch, dtype))
        usages.append(usage)
        sizes = (usage.peak_bytes, usage.expected_bytes, usage.more_bytes, usage.logits_bytes)
        peak, expected, more, logits = (size / MIB for size in sizes)
        print(f"{count:8,}{peak:10.0f}{expected:10.0f}{more:8.0f}{logits:17,.0f}", flush=True)
    return {
        "benchmark": "loss_memory",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "dtype": dtype,
        "results": [asdict(usage) | {"more_bytes": usage.more_bytes} for usage in usages],
        "versions": versions(),
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="polyserve_benchmarks.loss_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 16_384], help="default: 2048 16384")
    parser.add_argument("--vocab-size", type=int, default=256_000, help="default: 256000")
    parser.add_argument("--hidden-size", type=int, default=256, help="default: 256")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=num_cores(), help="default: all cores")
    asked = vars(parser.parse_args())
    torch.set_num_threads(asked.pop("threads"))
    print(json.dumps(run(**asked)))


if __name__ == "__main__":
    main()
