"""Dropout, for text that is read many times: of what embedding, attention and MLP bring, a part is left out at random.

    y = x keep / (1 - rate),   keep = 1 with probability 1 - rate, of each token and channel by itself
keep     a pure function of seed, step, row of the step and module: it depends neither on how rows are packed and shared
         by processes, nor on whether a layer is computed again for its gradients
Source   GPT-2's embd_pdrop and resid_pdrop; https://jmlr.org/papers/v15/srivastava14a.html
T tokens   C channels
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from polyserve.model.decoder import Decoder
from polyserve_training.model import generator

_LEAST = -(2**63)  # int64 from here on: every bit is random


class Dropout:
    """Of a model, inside `learning` alone: elsewhere, as in validation, everything is kept."""

    def __init__(self, model: Decoder, rate: float, *, seed: int) -> None:
        self._rate, self._seed = rate, seed
        self._rows: list[tuple[str, int]] | None = None  # each one's name and number of tokens
        if rate:
            for name, module in model.named_modules():
                if name == "embedding" or name.endswith((".attention", ".mlp")):
                    module.register_forward_hook(partial(self._thinned, name))

    @contextmanager
    def learning(self, step: int, rows: Sequence[tuple[int, int]]) -> Iterator[None]:
        """While a line of rows is learned from, gradients too.  rows: of each its tokens and its number in the step."""
        self._rows = [(f"{step}/{number}", length) for length, number in rows]
        try:
            yield
        finally:
            self._rows = None

    def _thinned(self, name: str, _module: nn.Module, _inputs: object, x: Tensor) -> Tensor:
        """x: [T, C]"""
        if self._rows is None:
            return x
        left_out = torch.cat([self._left_out(f"dropout/{row}/{name}", length, x) for row, length in self._rows])
        return (x * (1 / (1 - self._rate))).masked_fill(left_out, 0.0)

    def _left_out(self, name: str, length: int, x: Tensor) -> Tensor:
        """[length, C] bool. Of 16 random bits each: drawing them is what dropout costs."""
        size, numbers = length * x.shape[1], generator(self._seed, name, device=x.device)
        drawn = torch.empty(-(-size // 4), dtype=torch.int64, device=x.device).random_(_LEAST, None, generator=numbers)
        return drawn.view(torch.int16)[:size].view(length, -1) < round(self._rate * 2**16) - 2**15
