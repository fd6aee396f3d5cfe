"""What processes get that share a vocabulary: each trains on its part of the head. They talk by gloo, on the CPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing

from polyserve_kernels import ops
from polyserve_kernels.dispatch import use_backend

Trained = tuple[Tensor, ...]  # losses, and the gradients of hidden states and of the weight


@dataclass(frozen=True, slots=True)
class Case:
    hidden: Tensor
    weight: Tensor  # of the whole vocabulary
    targets: Tensor
    options: dict[str, Any] = field(default_factory=dict)


def trained(
    operation: Callable[..., Tensor], hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any
) -> Trained:
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    losses = operation(hidden, weight, targets, **options)
    slopes = torch.linspace(-1, 1.5, len(losses), dtype=losses.dtype)
    return losses.detach(), *torch.autograd.grad(losses, (hidden, weight), slopes)


def in_processes(
    num_processes: int, cases: Sequence[Case], backends: Sequence[str], folder: Path
) -> list[dict[str, list[Trained]]]:
    """What each process gets, by its rank, from each backend for each case."""
    multiprocessing.spawn(_process, (num_processes, cases, backends, folder), nprocs=num_processes)
    return [torch.load(folder / str(rank)) for rank in range(num_processes)]


def _process(rank: int, num_processes: int, cases: Sequence[Case], backends: Sequence[str], folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=num_processes,
        timeout=timedelta(seconds=60),
    )
    results = {}
    for backend in backends:
        with use_backend(backend):
            results[backend] = [_train_on_part(case, rank, num_processes) for case in cases]
    torch.save(results, folder / str(rank))
    distributed.destroy_process_group()


def _train_on_part(case: Case, rank: int, num_processes: int) -> Trained:
    part = case.weight.chunk(num_processes)[rank]
    group = distributed.group.WORLD
    return trained(ops.linear_cross_entropy, case.hidden, part, case.targets, group=group, **case.options)
