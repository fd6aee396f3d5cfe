"""The processes that train one model together: each has all of it, and a part of every step's rows.

Start        torchrun --nproc-per-node N --no-python polyserve train RECIPE   (--nnodes and so on for several machines)
Rows         process r of N takes rows r, r + N, ... of a step: the samples of a step are the same for every N
Gradients    are summed over the processes in fp32, after being divided by what all of them learn from; then every
             process takes the same step, so that weights stay the same without being sent
Written      by the first process alone: log, checkpoints. Control numbers go over gloo, so that no GPU is waited for
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from polyserve.log import get_logger


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among the others; alone unless it is said."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, number: int) -> int:
        """The sum of everyone's number."""
        if self.size == 1:
            return number
        on_cpu = torch.tensor(number)
        distributed.all_reduce(on_cpu)
        return int(on_cpu)

    def sum_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the sum of everyone's."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def leave(self) -> None:
        if self.size > 1:
            distributed.destroy_process_group()


def join() -> Processes:
    """Meet the processes that torchrun started with this one; alone where it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    processes = Processes(distributed.get_rank(), size)
    if not processes.first:
        get_logger("polyserve").setLevel("WARNING")
    return processes
