"""AdamW in fp32 beside weights that may be bf16, with a step that the device itself can turn into nothing.

    m = b1 m + (1 - b1) g     v = b2 v + (1 - b2) g^2
    w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
master   w lives in fp32 and is rounded to the weight after each step, so that small steps add up
parts    a process steps what it holds of each tensor (parallel.py); all of them know the norm of the whole gradient
keep     a step that is not kept changes nothing, t included; that is decided on the device, without waiting for it
How      one pass over memory, torch's fused kernel: clipping is its grad_scale, and a step not kept its found_inf
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
    master: Tensor  # fp32, contiguous; the parameter itself where that is so
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
            master = data.float().contiguous()
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
        self.num_kept += keep
        scale = norm.new_ones(())
        if self._recipe.clip is not None:
            scale = ((norm.float() + 1e-6) / self._recipe.clip).clamp(min=1.0)  # gradients are divided by it
        slots, t = list(self._slots.values()), self.num_kept.float()
        for decays in (True, False):
            group = [slot for slot in slots if slot.decays is decays]
            if not group:
                continue
            torch._fused_adamw_(
                [slot.master for slot in group],
                [slot.gradient.contiguous() for slot in group],  # it reads all as they lie
                [slot.exp_avg for slot in group],
                [slot.exp_avg_sq for slot in group],
                [],
                [t] * len(group),
                lr=lr,
                beta1=self._recipe.beta1,
                beta2=self._recipe.beta2,
                weight_decay=self._recipe.weight_decay if decays else 0.0,
                eps=self._recipe.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=scale.float(),
                found_inf=(~keep).float(),  # then it returns at once
            )
        for slot in slots:
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
