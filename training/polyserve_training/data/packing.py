"""Rows of a stream become one packed line of tokens: what the decoder computes at once.

row        `context` tokens of a stream and the one that follows. Documents that begin in it, and the piece that the
           row's own beginning cuts off, are sequences of their own: nothing is attended to across them, and positions
           start anew in each. So a row depends on its own tokens alone, and there is no buffer to restore
epoch      rows of each are cut at other places, so that text that is read again has other contexts and positions; at
           its end a stream goes on at its beginning
targets    the next token. After a document's end there is none to learn: IGNORED
T tokens   S sequences
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from polyserve_training.data.shards import Ids, Stream

IGNORED = -100
_SHIFT = 0.618  # of a row, between an epoch's beginning and the next one's: the golden ratio spreads many evenly


@dataclass(frozen=True, slots=True)
class Packed:
    token_ids: Ids  # [T]
    positions: Ids  # [T]
    cu_seqlens: NDArray[np.int32]  # [S + 1]
    targets: Ids  # [T]
    lengths: tuple[int, ...] = ()  # of what is packed in it, in tokens; none: it is one row

    @property
    def rows(self) -> tuple[int, ...]:
        """The tokens of each row."""
        return self.lengths or (len(self.token_ids),)

    @property
    def num_valid(self) -> int:
        """Tokens that are learned from."""
        return int((self.targets != IGNORED).sum())


class RowSource(Protocol):
    """What a stream is to the curriculum: rows that can be asked for in any order."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_rows(self) -> int: ...

    @property
    def tokens_per_byte(self) -> float: ...  # of the text that is learned, which makes losses comparable

    def row(self, number: int, epoch: int = 0) -> Packed: ...


@dataclass(frozen=True, slots=True)
class TextRows:
    """The rows of a stream of documents."""

    stream: Stream
    context: int

    @property
    def num_tokens(self) -> int:
        return self.stream.num_tokens

    @property
    def num_rows(self) -> int:
        """The last one may be shorter."""
        return -(-(self.num_tokens - 1) // self.context)

    @property
    def tokens_per_byte(self) -> float:
        return self.num_tokens / self.stream.entry.num_bytes

    def row(self, number: int, epoch: int = 0) -> Packed:
        size = self.num_tokens - 1
        stride = round(self.context * _SHIFT) | 1  # odd: all places come of a power of two
        shift = epoch * stride % min(self.context, size)
        start = shift + number * self.context
        end = min(start + self.context, shift + size)
        pieces = (start, min(end, size)), (max(start - size, 0), end - size)
        return pack([self._piece(first, last) for first, last in pieces if first < last])

    def _piece(self, start: int, end: int) -> Packed:
        """What is learned after the tokens from start to end."""
        tokens, begins = self.stream.read(start, end + 1)
        length = end - start
        targets = tokens[1:].copy()
        targets[begins[begins <= length] - 1] = IGNORED
        bounds = np.concatenate(([0], begins[begins < length], [length]))
        positions = np.arange(length) - np.repeat(bounds[:-1], np.diff(bounds))
        return Packed(tokens[:-1], positions, bounds.astype(np.int32), targets)


def pack(parts: Sequence[Packed]) -> Packed:
    """Several rows side by side."""
    firsts = accumulate((len(part.token_ids) for part in parts), initial=0)
    bounds = [part.cu_seqlens[:-1] + first for part, first in zip(parts, firsts, strict=False)]
    lengths = tuple(len(part.token_ids) for part in parts)
    return Packed(
        np.concatenate([part.token_ids for part in parts]),
        np.concatenate([part.positions for part in parts]),
        np.concatenate([*bounds, [sum(lengths)]]).astype(np.int32),
        np.concatenate([part.targets for part in parts]),
        lengths,
    )
