"""AdamW in fp32 beside weights that may be bf16, with a step that the device itself can turn into nothing.

    m = b1 m + (1 - b1) g     v = b2 v + (1 - b2) g^2
    w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
master   w lives in fp32 and is rounded to the weight after each step, so that small steps add up
parts    a process steps what it holds of each tensor (parallel.py); all of them know the norm of the whole gradient
keep     a step that is not kept changes nothing, t included; that is decided on the device, without waiting for it
decay    matrices alone; biases and norms do not decay, as in Megatron
Source   https://arxiv.org/abs/1711.05101
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from polyserve.model.decoder import Decoder
from polyserve_training.config import OptimizerRecipe
from polyserve_training.parallel import ALONE, Processes, local, placement_of
from polyserve_training.placement import Part, Placement


@dataclass(frozen=True, slots=True)
class _Slot:
    parameter: nn.Parameter
    placement: Placement | None  # None: all of the parameter is here, alone
    master: Tensor  # fp32; the parameter itself where that is fp32
    exp_avg: Tensor
    exp_avg_sq: Tensor
    decays: bool

    @property
    def gradient(self) -> Tensor:
        assert self.parameter.grad is not None, "every parameter takes part in every step"
        return local(self.parameter.grad)

    def part(self, tensor: Tensor) -> Tensor | Part:
        return tensor if self.placement is None else Part(tensor, self.placement)

    def follow(self) -> None:
        """Round the master weight into the parameter."""
        with torch.no_grad():
            local(self.parameter).copy_(self.master)


class AdamW:
    def __init__(self, model: nn.Module, recipe: OptimizerRecipe, processes: Processes = ALONE) -> None:
        self._recipe, self._processes = recipe, processes
        self._slots: dict[str, _Slot] = {}
        for name, parameter in model.named_parameters():
            data = local(parameter.detach())
            placement = None
            if processes.size > 1:
                assert isinstance(model, Decoder)
                placement = placement_of(name, parameter, model, processes)
            master = data if data.dtype == torch.float32 else data.float()
            moments = torch.zeros_like(master), torch.zeros_like(master)
            self._slots[name] = _Slot(parameter, placement, master, *moments, decays=parameter.dim() > 1)
        self._device = next(iter(self._slots.values())).master.device
        self.num_kept = torch.zeros((), dtype=torch.float64, device=self._device)  # t

    def sum_gradients(self, loss: Tensor) -> None:
        """Add up what processes with other rows found; what is in parts was added up when it was taken apart."""
        whole = [slot.gradient for slot in self._slots.values() if not isinstance(slot.parameter, DTensor)]
        self._processes.sum_over_rows([loss, *whole])

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients together, a number on the device."""
        if self._processes.size == 1:
            return nn.utils.get_total_norm([slot.gradient for slot in self._slots.values()])
        squares = [
            slot.gradient.square().sum() / slot.placement.copies
            for slot in self._slots.values()
            if slot.placement is not None
        ]
        return self._processes.sum_over_all(torch.stack(squares).sum()).sqrt()

    def step(self, *, lr: float, norm: Tensor, keep: Tensor) -> None:
        """Take a step along the gradients, whose norm was asked for, and forget them.  keep: a bool on the device."""
        kept = keep.float()
        self.num_kept += kept
        t = self.num_kept.clamp(min=1)
        scale = kept.new_ones(())
        if self._recipe.clip is not None:
            scale = (self._recipe.clip / (norm + 1e-6)).clamp(max=1.0)
        correction1 = (1 - self._recipe.beta1**t).float()
        correction2 = (1 - self._recipe.beta2**t).float()
        for slot in self._slots.values():
            grad = torch.where(keep, slot.gradient * scale, 0.0)  # what is not finite does not pass
            slot.exp_avg.lerp_(grad, (1 - self._recipe.beta1) * kept)
            slot.exp_avg_sq.lerp_(grad.square_(), (1 - self._recipe.beta2) * kept)
            step = (slot.exp_avg_sq / correction2).sqrt_().add_(self._recipe.eps)
            step = torch.div(slot.exp_avg, step, out=step).mul_(kept * (lr / correction1))
            if slot.decays:
                slot.master.mul_(1 - lr * self._recipe.weight_decay * kept)
            slot.master.sub_(step)
            slot.follow()
            slot.parameter.grad = None

    def state(self) -> dict[str, Tensor | Part]:
        """Everything that a later step depends on, weights included; the tensors themselves."""
        state: dict[str, Tensor | Part] = {"num_kept": self.num_kept}
        for name, slot in self._slots.items():
            state |= {f"weights/{name}": slot.part(slot.master), f"exp_avg/{name}": slot.part(slot.exp_avg)}
            state |= {f"exp_avg_sq/{name}": slot.part(slot.exp_avg_sq)}
        return state

    def weights_follow(self) -> None:
        """Round the master weights into the model, after `state` was written to."""
        for slot in self._slots.values():
            slot.follow()
