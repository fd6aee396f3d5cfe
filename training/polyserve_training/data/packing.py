"""Rows of a stream become one packed line of tokens: what the decoder computes at once.

row        `context` tokens of a stream and the one that follows. Documents that begin in it, and the piece that the
           row's own beginning cuts off, are sequences of their own: nothing is attended to across them, and positions
           start anew in each. So a row depends on its own tokens alone, and there is no buffer to restore
targets    the next token. After a document's end there is none to learn: IGNORED
T tokens   S sequences
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from polyserve_training.data.shards import Ids, Stream

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Packed:
    token_ids: Ids  # [T]
    positions: Ids  # [T]
    cu_seqlens: NDArray[np.int32]  # [S + 1]
    targets: Ids  # [T]

    @property
    def num_valid(self) -> int:
        """Tokens that are learned from."""
        return int((self.targets != IGNORED).sum())


def num_rows(num_tokens: int, context: int) -> int:
    """How many rows a stream has; the last one may be shorter."""
    return -(-(num_tokens - 1) // context)


def read_row(stream: Stream, row: int, context: int) -> Packed:
    start = row * context
    tokens, begins = stream.read(start, min(start + context + 1, stream.num_tokens))
    length = len(tokens) - 1
    targets = tokens[1:].copy()
    targets[begins[begins <= length] - 1] = IGNORED
    bounds = np.concatenate(([0], begins[begins < length], [length]))
    positions = np.arange(length) - np.repeat(bounds[:-1], np.diff(bounds))
    return Packed(tokens[:-1], positions, bounds.astype(np.int32), targets)


def pack(parts: Sequence[Packed]) -> Packed:
    """Several rows side by side."""
    firsts = accumulate((len(part.token_ids) for part in parts), initial=0)
    bounds = [part.cu_seqlens[:-1] + first for part, first in zip(parts, firsts, strict=False)]
    length = sum(len(part.token_ids) for part in parts)
    return Packed(
        np.concatenate([part.token_ids for part in parts]),
        np.concatenate([part.positions for part in parts]),
        np.concatenate([*bounds, [length]]).astype(np.int32),
        np.concatenate([part.targets for part in parts]),
    )
