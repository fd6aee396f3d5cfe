"""The judge of the demo: an interpolated Kneser-Ney n-gram model with modified discounts, over token ids.

    p_n(w | h) = max(c(h w) - D(c), 0) / c(h .) + gamma(h) p_{n-1}(w | h')      h' = h without its first token
    D(c)       D1, D2, D3+ of counts 1, 2, 3 and more, each order's own, from how many n-grams have counts 1 to 4
    gamma(h)   what the discounts took: (D1 N1(h .) + D2 N2(h .) + D3 N3+(h .)) / c(h .)
    counts     of the highest order, occurrences; of lower ones, different tokens to the left, but for n-grams that
               begin a document, which nothing can be left of and whose occurrences count
    p_0        1 / V
A context that was never seen leaves everything to the next lower order. N-grams do not cross documents.
Source   Chen and Goodman, https://dash.harvard.edu/handle/1/25104739, section 4.1; as KenLM, Heafield et al. 2013
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Order:
    """n-grams of one length, by numbers: 0 is none, and n-gram i has number i + 1."""

    keys: Ids  # [N] ascending: number of the context among the (n-1)-grams * V + last token
    discounted: Floats  # [N] max(count - D, 0) / count of its context
    gamma: Floats  # [M + 1] by number of the context; 1 where the context was not seen


class KneserNey:
    def __init__(self, documents: Sequence[Ids], *, vocab_size: int, order: int = 5) -> None:
        self._vocab_size, self._order = vocab_size, order
        tokens, places = _joined(documents)
        numbers = [
            np.ones(len(tokens), dtype=np.int64)
        ]  # of the n-gram that ends at each token; of length 0: all the same
        keys: list[Ids] = []
        for n in range(1, order + 1):
            here = places >= n - 1  # the n-gram lies within its document
            codes = _shifted(numbers[-1]) * vocab_size + tokens if n > 1 else tokens
            found = np.unique(codes[here])
            keys.append(found)
            numbers.append(np.where(here, np.searchsorted(found, codes) + 1, 0))
        self._orders = [self._estimate(n, keys, _counts(n, order, numbers, places)) for n in range(1, order + 1)]

    def _estimate(self, n: int, keys: list[Ids], counts: Ids) -> _Order:
        found = keys[n - 1]
        contexts = found // self._vocab_size if n > 1 else np.ones(len(found), dtype=np.int64)
        num_contexts = len(keys[n - 2]) if n > 1 else 1
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        total = np.bincount(contexts, counts, minlength=num_contexts + 1)
        taken = np.bincount(contexts, np.minimum(discounts, counts), minlength=num_contexts + 1)
        gamma = np.divide(taken, total, out=np.ones_like(taken), where=total > 0)
        return _Order(found, np.maximum(counts - discounts, 0) / total[contexts], gamma)

    def probabilities(self, document: Ids) -> Floats:
        """[T - 1] of each token after the first, after what stands before it in the document."""
        tokens = np.asarray(document, dtype=np.int64)
        places = np.arange(len(tokens))
        p = np.full(len(tokens), 1 / self._vocab_size)
        numbers = np.ones(len(tokens), dtype=np.int64)  # of the (n-1)-gram that ends at each token, 0: not seen
        for n, order in enumerate(self._orders, start=1):
            context = _shifted(numbers) if n > 1 else numbers
            codes = context * self._vocab_size + tokens if n > 1 else tokens
            index = np.minimum(np.searchsorted(order.keys, codes), len(order.keys) - 1)
            seen = (order.keys[index] == codes) & (context > 0) & (places >= n - 1)
            inside = (places >= n - 1) & (context > 0)
            p = np.where(inside, np.where(seen, order.discounted[index], 0.0) + order.gamma[context] * p, p)
            numbers = np.where(seen, index + 1, 0)
        return p[1:]


def _joined(documents: Sequence[Ids]) -> tuple[Ids, Ids]:
    """All tokens, and each one's place in its document."""
    lengths = [len(document) for document in documents]
    places = np.concatenate([np.arange(length) for length in lengths])
    return np.concatenate(documents).astype(np.int64), places


def _shifted(numbers: Ids) -> Ids:
    """What belongs to the token before; 0 at the first."""
    return np.concatenate(([0], numbers[:-1]))


def _counts(n: int, order: int, numbers: list[Ids], places: Ids) -> Ids:
    """Of each n-gram: occurrences, or, below the highest order, different tokens that stand before it."""
    mine = numbers[n]
    size = int(mine.max()) + 1
    if n == order:
        return np.bincount(mine, minlength=size)[1:]
    first = np.bincount(mine[places == n - 1], minlength=size)[1:]
    longer, ends = np.unique(numbers[n + 1], return_index=True)  # one place for each different (n+1)-gram
    return np.bincount(mine[ends[longer > 0]], minlength=size)[1:] + first


def _discounts(counts: Ids) -> Floats:
    """[4] by count: of 0, 1, 2, 3 and more."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if not n1 or not n2 or not n3:
        return np.array([0.0, 0.5, 1.0, 1.5])  # too little text to estimate them from: KenLM's fallback
    y = n1 / (n1 + 2 * n2)
    discounts: Floats = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    within: Floats = np.clip(discounts, 0.0, np.arange(4.0))
    return within
