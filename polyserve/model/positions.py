"""Where a token stands, for the two schemes that act inside attention: rotary angles and ALiBi slopes.

rotary   element pair i of a head turns by angle p f_i at position p;  f_i = base ** (-2 i / R)
         R rotating elements, R / 2 frequencies; cos and sin in fp32 from float64 angles, since a rounded angle at
         position 8,000 is already wrong in the third digit of its cosine (https://arxiv.org/abs/2411.13476)
ALiBi    score += slope_h (key position - query position)
Sources  https://arxiv.org/abs/2104.09864   https://arxiv.org/abs/2108.12409   scalings: see RopeScaling
"""

import math

import torch
from torch import Tensor, nn

from polyserve.model.config import RopeScaling

_ROWS_AT_A_TIME = 256


class RotaryTable(nn.Module):
    """cos and sin of every position for one (base, scaling), [max_len, R / 2] float32 each."""

    cos: Tensor
    sin: Tensor

    def __init__(self, base: float, scaling: RopeScaling | None, *, size: int, scale: float, max_len: int) -> None:
        """size: rotating elements of a head. scale: multiplies every angle. max_len: longest sequence to be served."""
        super().__init__()
        frequencies = inverse_frequencies(base, scaling, size=size, max_len=max_len) * scale
        magnitude = scaling.attention_factor if scaling is not None else 1.0
        self.register_buffer("cos", torch.empty(max_len, size // 2), persistent=False)
        self.register_buffer("sin", torch.empty(max_len, size // 2), persistent=False)
        near = _turns(torch.arange(min(_ROWS_AT_A_TIME, max_len)), frequencies) * magnitude
        far = _turns(torch.arange(0, max_len, _ROWS_AT_A_TIME), frequencies)
        for start, turn in zip(range(0, max_len, _ROWS_AT_A_TIME), far, strict=True):
            turns = near[: max_len - start] * turn  # e^i(a + b) = e^ia e^ib: few sines, which are slow in float64
            self.cos[start : start + len(turns)] = turns.real
            self.sin[start : start + len(turns)] = turns.imag

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of cos and sin for positions [T] int64."""
        return self.cos[positions], self.sin[positions]


def _turns(positions: Tensor, frequencies: Tensor) -> Tensor:
    """e^i(p f_i), [len(positions), R / 2] complex128."""
    angles = positions[:, None].double() * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def inverse_frequencies(base: float, scaling: RopeScaling | None, *, size: int, max_len: int) -> Tensor:
    """f_i, [R / 2] float64. max_len, the longest sequence to be served, matters to the dynamic kind alone."""
    if scaling is None:
        return _plain(base, size)
    if scaling.kind == "linear":
        return _plain(base, size) / scaling.factor
    if scaling.kind == "factors":
        return _plain(base, size) / torch.tensor(scaling.factors, dtype=torch.float64)
    if scaling.kind == "dynamic":
        ratio = max(1.0, max_len / scaling.original_max_len)
        stretch = scaling.factor * ratio - (scaling.factor - 1)
        return _plain(base * stretch ** (size / (size - 2)), size)
    if scaling.kind == "llama3":
        return _llama3_frequencies(_plain(base, size), scaling)
    return _yarn_frequencies(base, scaling, size=size)


def _plain(base: float, size: int) -> Tensor:
    return torch.pow(base, -torch.arange(0, size, 2, dtype=torch.float64) / size)


def _llama3_frequencies(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Pairs that turn often within the trained length stay, those that turn rarely are stretched, others blended."""
    turns = scaling.original_max_len * plain / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0, 1)
    return keep * plain + (1 - keep) * plain / scaling.factor


def _yarn_frequencies(base: float, scaling: RopeScaling, *, size: int) -> Tensor:
    """The same idea with the blend linear in the index i, between those that turn beta_fast and beta_slow times."""

    def index_that_turns(times: float) -> float:
        return size * math.log(scaling.original_max_len / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = index_that_turns(scaling.beta_fast), index_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    index = torch.arange(size // 2, dtype=torch.float64)
    stretched = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
    plain = _plain(base, size)
    return (1 - stretched) * plain + stretched * plain / scaling.factor


def alibi_slopes(num_heads: int, *, scale: float = 1.0) -> Tensor:
    """[Hq] float32: 2 ** (-8 i / n) for n a power of two; else those of the power below, every second of the next."""
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = _power_of_two_slopes(power)
    slopes += _power_of_two_slopes(2 * power)[::2][: num_heads - power]
    return torch.tensor(slopes, dtype=torch.float64).mul(scale).float()


def _power_of_two_slopes(num_heads: int) -> list[float]:
    return [2 ** (-8 * (head + 1) / num_heads) for head in range(num_heads)]
