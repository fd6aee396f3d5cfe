"""The values that operations take and give besides tensors, all frozen, and the numbers that callers must know.

S rows   E edits   K candidates   N top entries   V vocabulary   Hq, Hkv heads of size D
Of a weight: N outputs   K channels
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

PACKED_GROUP = 32  # most channels that are summed before the sum is scaled: longer sums would lose digits
KEY_TILE = 128  # keys of one attention partial, at absolute positions; divides the cache's blocks, or they divide it


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How a query's product with a key becomes a score: times scale, then the soft cap, then ALiBi, then the window."""

    scale: float
    soft_cap: float | None = None  # soft_cap * tanh(score / soft_cap)
    alibi_slopes: Tensor | None = None  # [Hq] float32; adds slope * (key position - query position)
    window: int | None = None  # the query at position i sees the keys at i - window < j <= i


@dataclass(frozen=True, slots=True)
class BlockCache:
    """One layer's keys and values in blocks: a token has the slot block * block_size + offset.

    Floats are stored rounded to the cache's dtype. int8 and float8_e4m3fn are stored divided by a scale of their own
    for each token and head, the largest magnitude over the dtype's largest number: stored * scale is what is attended.
    """

    k: Tensor  # [num_blocks, block_size, Hkv, D], contiguous
    v: Tensor
    k_scales: Tensor | None = None  # [num_blocks, block_size, Hkv] float32, contiguous; None for floats
    v_scales: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """How the numbers of a packed weight are stored: floats of one dtype, or integers with scales.

    An integer x stands for (x - offset) * scale + minimum. Two levels: a block of groups has one scale and one minimum
    in float16, and each group a small factor for each. `gguf_type` is the block format that it keeps every bit of.
    """

    dtype: torch.dtype | None = None  # of floats
    bits: int = 0  # of an integer; 0: floats
    offset: int = 0
    group: int = 0  # channels
    block: int = 0  # channels; a multiple of group
    scale_dtype: torch.dtype = torch.float16
    has_minimum: bool = False
    two_level: bool = False
    gguf_type: int | None = None  # GGML's number of it


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A weight [N, K] of small numbers with a scale for each group of channels of a row, laid out as it is on disk.

    weight = values * scale + minimum: the product is rounded to float32, then the sum, then once to the dtype that is
    multiplied. A group is 16, 32, 64 or 128 channels, or, but for int4, all K of a row.
    """

    scheme: Literal["int8", "int4", "fp8"]
    values: (
        Tensor  # [N, K] int8 or float8_e4m3fn, or [N, K / 2] uint8: channel 2i in the low half of byte i; contiguous
    )
    scales: Tensor  # [N, K / group] float32, bfloat16 or float16, at any strides
    minimums: Tensor | None = None  # as scales, strides too; for int4, whose values are 0 to 15, and no other

    @property
    def num_outputs(self) -> int:
        return self.values.shape[0]

    @property
    def channels(self) -> int:
        return self.values.shape[1] * (2 if self.scheme == "int4" else 1)

    @property
    def group_size(self) -> int:
        return self.channels // self.scales.shape[1]

    @property
    def form(self) -> WeightFormat:
        """How a packed weight stores the same numbers."""
        whole_rows = self.scales.shape[1] == 1
        return WeightFormat(
            bits=4 if self.scheme == "int4" else 8,
            group=PACKED_GROUP if whole_rows else min(PACKED_GROUP, self.group_size),
            block=8 * PACKED_GROUP if whole_rows else self.group_size,
            scale_dtype=self.scales.dtype,
            has_minimum=self.minimums is not None,
        )

    def __len__(self) -> int:
        return self.num_outputs


def _gguf(number: int, bits: int, offset: int, group: int, block: int, *, minimum: bool = False) -> WeightFormat:
    return WeightFormat(
        bits=bits,
        offset=offset,
        group=group,
        block=block,
        has_minimum=minimum,
        two_level=block == 256,
        gguf_type=number,
    )


GGUF_FORMATS = {
    "Q4_0": _gguf(2, 4, 8, 32, 32),
    "Q4_1": _gguf(3, 4, 0, 32, 32, minimum=True),
    "Q5_0": _gguf(6, 5, 16, 32, 32),
    "Q5_1": _gguf(7, 5, 0, 32, 32, minimum=True),
    "Q8_0": _gguf(8, 8, 0, 32, 32),
    "Q2_K": _gguf(10, 2, 0, 16, 256, minimum=True),
    "Q3_K": _gguf(11, 3, 4, 16, 256),
    "Q4_K": _gguf(12, 4, 0, 32, 256, minimum=True),
    "Q5_K": _gguf(13, 5, 0, 32, 256, minimum=True),
    "Q6_K": _gguf(14, 6, 32, 16, 256),
}


@dataclass(frozen=True, slots=True, eq=False)
class PackedPart:
    """Some rows of a packed weight, in one format."""

    form: WeightFormat
    num_rows: int
    memory: Tensor  # uint8, in a layout of the backend's own


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight [N, K] in the layout that its backend multiplies fastest. Its parts' rows follow each other.

    The product with it is that of the numbers which its format stands for: integers are multiplied as they are, and the
    sum of a group is scaled, in float32.
    """

    parts: tuple[PackedPart, ...]
    channels: int
    handle: Any = field(repr=False)  # the backend's own view of the parts

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.num_rows for part in self.parts), self.channels

    @property
    def dtype(self) -> torch.dtype | None:
        """Of floats; None if any part has integers, which are multiplied in x's dtype."""
        dtypes = {part.form.dtype for part in self.parts}
        return dtypes.pop() if len(dtypes) == 1 else None

    @property
    def device(self) -> torch.device:
        return self.parts[0].memory.device

    @property
    def nbytes(self) -> int:
        return sum(part.memory.nbytes for part in self.parts)

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitEdits:
    """Changes to the logits of some rows, as sparse entries and a packed mask.

    new = (logit / repetition if logit > 0 else logit * repetition) + bias, and -inf where a mask does not allow the id.
    Entry e changes the logit of id ids[e] in row rows[e]; a (row, id) pair stands at most once.
    """

    rows: Tensor  # [E] int64
    ids: Tensor  # [E] int64
    repetition: Tensor  # [E] float32, more than 0; 1 changes nothing
    bias: Tensor  # [E] float32, may be -inf
    allowed: Tensor | None = None  # [S, ceil(V / 32)] int32: id v is allowed if bit v % 32 of word v // 32 is set


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadTopK:
    """What sampling and log-probabilities need of a row's logits. Two distributions are described:

    raw     the model's own logits, after the soft cap
    edited  (raw changed by `LogitEdits`) / temperature
    """

    ids: Tensor  # [S, K] int64, best edited value first, smaller id first among equals
    values: Tensor  # [S, K] float32, edited values of `ids`
    raw: Tensor  # [S, K] float32, raw logits of `ids`
    lse: Tensor  # [S] float32, log-sum-exp of the edited values over the whole vocabulary
    raw_lse: Tensor  # [S] float32, of the raw logits
    drawn_ids: Tensor | None  # [S] int64, one draw from softmax(edited) over the whole vocabulary; -1 where all is -inf
    drawn_raw: Tensor | None  # [S] float32, raw logit of the draw; -inf where there is none
    top_ids: Tensor  # [S, N] int64, best raw logit first, smaller id first among equals
    top_raw: Tensor  # [S, N] float32


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """How `linear_cross_entropy` makes losses of logits."""

    ignore_index: int = -100  # a target that costs nothing
    z_loss: float = 0.0  # times the square of the log-sum-exp
    soft_cap: float | None = None  # a logit becomes soft_cap * tanh(logit / soft_cap)
    group: ProcessGroup | None = None  # the processes that share the vocabulary, in order of rank
