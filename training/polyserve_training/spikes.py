"""Steps that stand out are skipped, and what stands out is decided on the device, from the steps before.

kept      loss and gradient norm are finite, and neither is more than `sigmas` standard deviations above its mean over
          the last `window` steps; before half a window has been seen, finite is enough
window    takes in every finite step, skipped or not, so that a level that stays higher becomes the new one
Source    OLMo's SkipStepOptimizer, https://github.com/allenai/OLMo-core
"""

import torch
from torch import Tensor

from polyserve_training.config import SpikeRecipe


class SpikeGuard:
    def __init__(self, recipe: SpikeRecipe, device: torch.device) -> None:
        self._sigmas, self._window = recipe.sigmas, recipe.window
        self._seen = torch.full((2, recipe.window), torch.nan, dtype=torch.float64, device=device)  # losses, norms

    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether to keep step number `step`: a bool on the device."""
        now = torch.stack((loss, norm)).to(self._seen)  # [2]
        finite = now.isfinite().all()
        keep = finite
        if self._sigmas is not None:
            known = self._seen.isfinite()
            count = known.sum(dim=1).clamp(min=1)
            mean = torch.where(known, self._seen, 0.0).sum(dim=1) / count
            variance = torch.where(known, self._seen - mean[:, None], 0.0).square().sum(dim=1) / count
            calm = (now <= mean + self._sigmas * variance.sqrt()).all()
            keep = finite & (calm | (count[0] < self._window // 2))
        self._seen[:, step % self._window] = now  # what is not finite is not known, above
        return keep

    def state(self) -> dict[str, Tensor]:
        return {"spikes": self._seen}
