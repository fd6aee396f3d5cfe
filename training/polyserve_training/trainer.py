"""One step of training: gradients of all parts, the guard's word, the optimiser's step. Nothing waits for the device.

loss       of a step: the sum over its tokens, divided by how many of all its parts are learned from, so that parts of
           different sizes weigh what they hold
forward    `Decoder` with `PackedContext`, and `linear_cross_entropy`, whose bits are the server's log-probabilities'
T tokens of a part
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from polyserve.model.decoder import Decoder
from polyserve.model.forward_context import PackedContext
from polyserve_kernels import ops
from polyserve_training.config import Recipe
from polyserve_training.data.packing import IGNORED, Packed
from polyserve_training.dropout import Dropout
from polyserve_training.optimizer import AdamW
from polyserve_training.parallel import ALONE, Processes
from polyserve_training.placement import Part
from polyserve_training.schedule import learning_rate
from polyserve_training.spikes import SpikeGuard


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did; tensors are numbers on the device."""

    loss: Tensor
    gradient_norm: Tensor
    kept: Tensor
    learning_rate: float
    num_valid: int


class Trainer:
    def __init__(self, model: Decoder, recipe: Recipe, processes: Processes = ALONE) -> None:
        """processes: those that take this model's steps together."""
        self.model, self._recipe, self._processes = model, recipe, processes
        self.device = _head(model).device
        self.optimizer = AdamW(model, recipe.optimizer, processes)
        self._guard = SpikeGuard(recipe.spikes, self.device)
        self._dropout = Dropout(model, recipe.dropout, seed=recipe.seed)

    def step(self, number: int, parts: Sequence[Packed]) -> StepResult:
        """Learn from this process's parts of step `number`, counted from 0."""
        everywhere = self._processes.total(sum(part.num_valid for part in parts))
        num_valid = int(everywhere) // self._processes.tensor  # whose processes have the same parts
        loss = torch.zeros((), device=self.device)
        numbers = count(self._processes.data_rank, self._processes.data)  # of its rows, among those of the step
        for part in parts:
            with self._dropout.learning(number, list(zip(part.rows, numbers, strict=False))):
                losses = token_losses(self.model, part, z_loss=self._recipe.z_loss, group=self._processes.tensor_group)
                part_loss = losses.sum() / max(num_valid, 1)
                part_loss.backward()  # type: ignore[no-untyped-call]
            loss += part_loss.detach()
        self.optimizer.sum_gradients(loss)
        norm = self.optimizer.gradient_norm()
        kept = self._guard.judge(number, loss, norm)
        lr = learning_rate(
            number,
            peak=self._recipe.optimizer.lr,
            num_steps=self._recipe.num_steps,
            schedule=self._recipe.schedule,
        )
        self.optimizer.step(lr=lr, norm=norm, keep=kept)
        return StepResult(loss, norm, kept, lr, num_valid)

    def state(self) -> dict[str, Tensor | Part]:
        """Everything that later steps depend on but their number; the tensors themselves."""
        return {**self.optimizer.state(), **self._guard.state()}


def token_losses(model: Decoder, part: Packed, *, z_loss: float = 0.0, group: ProcessGroup | None = None) -> Tensor:
    """[T] float32, 0 where there is nothing to learn. Without z-loss, the negative of the server's log-probability.

    group: processes that divide the model's layers and vocabulary."""
    device = _head(model).device
    token_ids, positions, bounds, targets = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (part.token_ids, part.positions, part.cu_seqlens, part.targets)
    )
    hidden = model(token_ids, positions, PackedContext(bounds))
    return ops.linear_cross_entropy(
        hidden,
        _head(model),  # which the forward pass has gathered, if it is divided
        targets,
        ignore_index=IGNORED,
        z_loss=z_loss,
        soft_cap=model.config.final_soft_cap,
        group=group,
    )


def _head(model: Decoder) -> Tensor:
    """[V, C]"""
    weight = model.head_weight
    assert isinstance(weight, Tensor), "packed weights serve, and are not trained"
    return weight
