"""Folds over tiles of the vocabulary: the log-sum-exp and the best K of each row, without ever holding the row.

Log-sum-exp   each tile gives (maximum, sum of exponentials), folded in the order the tiles come
Best K        the best of each tile against those so far; among equals the smaller id, at the border of K as well
Shapes        S rows   n ids of a tile   K candidates
"""

import torch
from torch import Tensor

_LOWEST = torch.finfo(torch.float32).min  # in place of -inf, so that a difference of maxima is never nan


class LogSumExp:
    """The log-sum-exp of each row over the tiles so far."""

    def __init__(self, rows: Tensor) -> None:
        self._m = torch.full((len(rows),), _LOWEST, device=rows.device)
        self._total = torch.zeros(len(rows), device=rows.device)

    def add(self, x: Tensor) -> Tensor:
        """Fold a tile [S, n] in. Returns the tile's own log-sum-exp [S]."""
        tile_m = x.amax(-1)
        shares = x.softmax(
            -1
        )  # fast where torch.exp is not: on numbers far below the maximum, whose share is 1 / total
        tile_total = (shares.sum(-1) / shares.amax(-1)).masked_fill(tile_m == -torch.inf, 0.0)
        tile_m = tile_m.clamp(min=_LOWEST)
        m = torch.maximum(self._m, tile_m)
        self._total = self._total * torch.exp(self._m - m) + tile_total * torch.exp(tile_m - m)
        self._m = m
        return tile_m + torch.log(tile_total)

    def value(self) -> Tensor:
        return self._m + torch.log(self._total)


class BestSoFar:
    """The best k entries of each row, in ascending order of id until `sort` puts the best first."""

    def __init__(self, k: int, rows: Tensor) -> None:
        self._k = k
        self.ids = torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)  # [S, K]
        self.values = torch.empty(len(rows), 0, device=rows.device)  # [S, K], what is compared
        self.raw = self.values  # [S, K], what is kept with it

    def add(self, values: Tensor, first: int, raw: Tensor) -> None:
        """Let the tile [S, n] of ids from `first` on compete."""
        if self._k == 0:
            return
        places = _best_places(values, self._k)
        ids = torch.cat((self.ids, places + first), dim=1)
        raw = torch.cat((self.raw, raw.gather(1, places)), dim=1)
        values = torch.cat((self.values, values.gather(1, places)), dim=1)
        if self.ids.shape[1]:
            places = _best_places(values, self._k)
            ids, raw, values = (x.gather(1, places) for x in (ids, raw, values))
        self.ids, self.raw, self.values = ids, raw, values

    def sort(self) -> None:
        """Best value first, smaller id first among equals."""
        self.values, order = self.values.sort(dim=1, descending=True, stable=True)
        self.ids, self.raw = self.ids.gather(1, order), self.raw.gather(1, order)


def _best_places(values: Tensor, k: int) -> Tensor:
    """Places [S, min(k, n)] of the k largest of each row [S, n], the first among equals, in ascending order."""
    num_rows, size = values.shape
    if k >= size:
        return torch.arange(size, device=values.device).expand(num_rows, size)
    if k == 1:
        return values.argmax(dim=1, keepdim=True)  # the first of the largest
    largest, places = values.topk(k + 1, dim=1)
    places = places[:, :k].sort(dim=1).values
    tied = (largest[:, k - 1] == largest[:, k]).nonzero().squeeze(1)  # of equals at the border topk takes any
    if len(tied):
        places[tied] = _first_places(values[tied], largest[tied, k - 1, None], k)
    return places


def _first_places(values: Tensor, border: Tensor, k: int) -> Tensor:
    """Places [S, k] of all values above the row's border [S, 1] and of the first that equal it."""
    above, equal = values > border, values == border
    room = k - above.sum(dim=1, keepdim=True)
    taken = above | (equal & (equal.cumsum(dim=1) <= room))
    return taken.nonzero()[:, 1].view(-1, k)
