"""The values that operations take and give besides tensors, all frozen, and the one number that callers must know.

S rows   E edits   K candidates   N top entries   V vocabulary   Hq, Hkv heads of size D
Of a weight: N outputs   K channels
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.distributed import ProcessGroup

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
