"""AdamW in fp32 beside weights that may be bf16, with a step that the device itself can turn into nothing.

    m = b1 m + (1 - b1) g     v = b2 v + (1 - b2) g^2
    w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
master   w lives in fp32 and is rounded to the weight after each step, so that small steps add up
keep     a step that is not kept changes nothing, t included; that is decided on the device, without waiting for it
decay    matrices alone; biases and norms do not decay, as in Megatron
Source   https://arxiv.org/abs/1711.05101
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyserve_training.config import OptimizerRecipe


@dataclass(frozen=True, slots=True)
class _Slot:
    parameter: nn.Parameter
    master: Tensor  # fp32; the parameter itself where that is fp32
    exp_avg: Tensor
    exp_avg_sq: Tensor
    decays: bool


class AdamW:
    def __init__(self, model: nn.Module, recipe: OptimizerRecipe) -> None:
        self._recipe = recipe
        self._slots: dict[str, _Slot] = {}
        for name, parameter in model.named_parameters():
            data = parameter.detach()
            master = data if data.dtype == torch.float32 else data.float()
            moments = torch.zeros_like(master), torch.zeros_like(master)
            self._slots[name] = _Slot(parameter, master, *moments, decays=parameter.dim() > 1)
        self._device = next(iter(self._slots.values())).master.device
        self.num_kept = torch.zeros((), dtype=torch.float64, device=self._device)  # t

    def gradients(self) -> list[Tensor]:
        return [self._gradient(slot) for slot in self._slots.values()]

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients together, a number on the device."""
        return nn.utils.get_total_norm(self.gradients())

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
            grad = torch.where(keep, self._gradient(slot) * scale, 0.0)  # what is not finite does not pass
            slot.exp_avg.lerp_(grad, (1 - self._recipe.beta1) * kept)
            slot.exp_avg_sq.lerp_(grad.square_(), (1 - self._recipe.beta2) * kept)
            step = (slot.exp_avg_sq / correction2).sqrt_().add_(self._recipe.eps)
            step = torch.div(slot.exp_avg, step, out=step).mul_(kept * (lr / correction1))
            if slot.decays:
                slot.master.mul_(1 - lr * self._recipe.weight_decay * kept)
            slot.master.sub_(step)
            with torch.no_grad():
                slot.parameter.copy_(slot.master)
            slot.parameter.grad = None

    @staticmethod
    def _gradient(slot: _Slot) -> Tensor:
        assert slot.parameter.grad is not None, "every parameter takes part in every step"
        return slot.parameter.grad

    def state(self) -> dict[str, Tensor]:
        """Everything that a later step depends on, weights included; the tensors themselves."""
        state = {"num_kept": self.num_kept}
        for name, slot in self._slots.items():
            state |= {f"weights/{name}": slot.master, f"exp_avg/{name}": slot.exp_avg}
            state |= {f"exp_avg_sq/{name}": slot.exp_avg_sq}
        return state

    def weights_follow(self) -> None:
        """Round the master weights into the model, after `state` was written to."""
        with torch.no_grad():
            for slot in self._slots.values():
                slot.parameter.copy_(slot.master)
