"""One vector of a prompt's hidden states, which come in chunks: its last token's, or the mean of all.

The mean is summed in integers, in units of 2**-32: such a sum has no order, so its bits depend neither on how the
prompt was cut nor on the device. Norms bound a state's numbers to a few hundred, and 2**31 / length is what fits.
"""

from math import isfinite

import torch
from torch import Tensor

from polyserve.pooling import Pooling

_UNIT = 2.0**-32


class Pooler:
    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._last: Tensor | None = None  # [C]
        self._total: Tensor | None = None  # [C] int64: what is summed of the mean
        self._num_states = 0
        self._finite = True

    def push(self, states: Tensor) -> None:
        """Take in the states [T, C] of the next T tokens."""
        if self._pooling == "last":
            self._last = states[-1].clone()  # a graph's states are overwritten by its next run
            return
        self._finite &= bool(states.isfinite().all())
        total = (states.double() / _UNIT).round().to(torch.int64).sum(dim=0)
        self._total = total if self._total is None else self._total + total
        self._num_states += len(states)

    def result(self) -> list[float] | None:
        """The vector [C]; None if a number of it is not finite."""
        if self._last is not None:
            vector = self._last.double()
        else:
            assert self._total is not None, "nothing was pushed"
            vector = self._total.double() * (_UNIT / self._num_states)
        values: list[float] = vector.tolist()
        return values if self._finite and all(map(isfinite, values)) else None
