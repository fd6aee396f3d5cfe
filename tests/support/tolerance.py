"""How far from the truth a kernel may be: twice as far as plain torch in the same dtype, never a number chosen by hand.

ours    what an operation gave          eager   what plain torch gave from the same inputs in the same dtype
exact   the same in float64
"""

import torch
from torch import Tensor


def assert_as_good_as_torch(ours: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Largest error at most twice eager torch's, or one rounding of the largest exact value where torch was lucky."""
    assert exact.dtype == torch.float64
    assert ours.shape == exact.shape
    assert ours.dtype == eager.dtype
    if ours.numel() == 0:
        return
    error, eager_error = _largest(ours, exact), _largest(eager, exact)
    rounding = torch.finfo(ours.dtype).eps / 2 * exact.abs().max().item()
    assert error <= max(2 * eager_error, rounding), f"error {error:.3g}, torch's own {eager_error:.3g}"


def _largest(x: Tensor, exact: Tensor) -> float:
    return (x.double() - exact).abs().max().item()
