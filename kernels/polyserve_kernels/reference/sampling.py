"""What sampling needs of the head: hidden states times the vocabulary, a tile of VOCAB_TILE ids at a time.

Tile      a whole number of matmul's weight tiles, so that a logit has one value wherever it is computed. Log-sum-exps of tiles are folded in
          ascending order.
Best K    survivors of each tile are merged with those so far; among equal values the smaller id is better, at the border as well.
Draw      a tile wins with probability exp(its lse) / total (Gumbel race), an id inside it by inverse CDF.
Shapes    S rows   n ids of a tile   K candidates   hidden [S, C]   weight [V, C]
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from polyserve_kernels.reference.matmul import fill_up, tile_product, weight_tiles
from polyserve_kernels.types import HeadTopK, LogitEdits

VOCAB_TILE = 8192  # ids; a multiple of every weight tile


def num_vocab_tiles(vocab_size: int, channels: int) -> int:
    return -(-vocab_size // VOCAB_TILE)


def logit_tiles(hidden: Tensor, weight: Tensor, soft_cap: float | None) -> Iterator[tuple[int, Tensor]]:
    """First id and raw logits [S, n] float32 of each tile, in ascending order."""
    rows = fill_up(hidden)
    for first in range(0, weight.shape[0], VOCAB_TILE):
        products = torch.cat([tile_product(tile, rows) for tile in weight_tiles(weight[first : first + VOCAB_TILE])])
        raw = products.t()[: len(hidden)].contiguous()
        yield first, raw if soft_cap is None else soft_cap * torch.tanh(raw / soft_cap)


def head_topk(
    hidden: Tensor,
    weight: Tensor,
    *,
    k: int,
    temperature: Tensor | None,
    edits: LogitEdits | None,
    uniforms: Tensor | None,
    num_top: int,
    soft_cap: float | None,
) -> HeadTopK:
    plain = edits is None and temperature is None
    best, top = _Best(k), _Best(num_top)
    lse, raw_lse = LogSumExp(), LogSumExp()
    draw = None if uniforms is None else _Draw(uniforms)
    editor = None if edits is None else _Editor(edits)
    for number, (first, raw) in enumerate(logit_tiles(hidden, weight, soft_cap)):
        edited = _edit(raw, first, editor, temperature)
        best.add(edited, first, raw)
        tile_lse = lse.add(edited)
        if not plain:
            raw_lse.add(raw)
        if draw is not None:
            draw.add(number, first, edited, raw, tile_lse)
        if num_top:
            top.add(raw, first, raw)
    if not num_top:
        top.start(len(hidden), hidden.device)
    return HeadTopK(
        ids=best.ids, values=best.values, raw=best.raw, lse=lse.value(), raw_lse=lse.value() if plain else raw_lse.value(),
        drawn_ids=draw.ids if draw else None, drawn_raw=draw.raw if draw else None, top_ids=top.ids, top_raw=top.values,
    )  # fmt: skip


def head_logits(
    hidden: Tensor, weight: Tensor, *, edits: LogitEdits | None, temperature: Tensor | None, soft_cap: float | None
) -> tuple[Tensor, Tensor]:
    editor = None if edits is None else _Editor(edits)
    tiles = [(raw, _edit(raw, first, editor, temperature)) for first, raw in logit_tiles(hidden, weight, soft_cap)]
    return torch.cat([raw for raw, _ in tiles], dim=1), torch.cat([edited for _, edited in tiles], dim=1)


class LogSumExp:
    """Folds tiles [S, n] into a log-sum-exp [S], in the order they come."""

    def __init__(self) -> None:
        self.state: tuple[Tensor, Tensor] | None = None  # maximum and sum, [S] each

    def add(self, x: Tensor) -> Tensor:
        """Fold a tile in; its own log-sum-exp [S] comes back."""
        m = x.amax(-1).clamp(min=torch.finfo(torch.float32).min)
        total = torch.exp(x - m[:, None]).sum(-1)
        if self.state is None:
            self.state = m, total
        else:
            old_m, old_total = self.state
            new_m = torch.maximum(old_m, m)
            self.state = new_m, old_total * torch.exp(old_m - new_m) + total * torch.exp(m - new_m)
        return m + torch.log(total)

    def value(self) -> Tensor:
        assert self.state is not None
        return self.state[0] + torch.log(self.state[1])


class _Best:
    """The best k so far of each row."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.ids: Tensor
        self.values: Tensor
        self.raw: Tensor
        self.empty = True

    def start(self, num_rows: int, device: torch.device) -> None:
        self.values = torch.empty(num_rows, 0, device=device)
        self.raw = self.values
        self.ids = torch.empty(num_rows, 0, dtype=torch.int64, device=device)
        self.empty = False

    def add(self, values: Tensor, first: int, raw: Tensor) -> None:
        if self.empty:
            self.start(len(values), values.device)
        kept_values, places = torch.sort(values, dim=1, descending=True, stable=True)
        kept_values, places = kept_values[:, : self.k], places[:, : self.k]
        values = torch.cat((self.values, kept_values), 1)
        ids = torch.cat((self.ids, places + first), 1)
        raws = torch.cat((self.raw, raw.gather(1, places)), 1)
        self.values, order = torch.sort(values, dim=1, descending=True, stable=True)
        self.values, order = self.values[:, : self.k], order[:, : self.k]
        self.ids, self.raw = ids.gather(1, order), raws.gather(1, order)


class _Draw:
    """One draw of each row: the winner of the tiles' race so far."""

    def __init__(self, uniforms: Tensor) -> None:
        self.noise = -torch.log(-torch.log(uniforms[:, :, 0]))  # [S, tiles]
        self.inside = uniforms[:, :, 1]
        self.lead = torch.full_like(self.noise[:, 0], -torch.inf)
        self.ids = torch.full_like(self.lead, -1, dtype=torch.int64)
        self.raw = torch.full_like(self.lead, -torch.inf)

    def add(self, number: int, first: int, edited: Tensor, raw: Tensor, tile_lse: Tensor) -> None:
        race = self.noise[:, number] + tile_lse
        rows = (race > self.lead).nonzero().squeeze(1)
        if not len(rows):
            return
        x = edited[rows]
        sums = torch.exp(x - x.amax(-1, keepdim=True)).double().cumsum(-1)
        level = sums[:, -1:] * self.inside[rows, number, None].double()
        places = torch.searchsorted(sums, level, right=True)
        self.lead = self.lead.index_copy(0, rows, race[rows])
        self.ids = self.ids.index_copy(0, rows, places[:, 0] + first)
        self.raw = self.raw.index_copy(0, rows, raw[rows].gather(1, places)[:, 0])


class _Editor:
    """LogitEdits, with the sparse entries in ascending order of id, so that a tile's are one slice."""

    def __init__(self, edits: LogitEdits) -> None:
        self.ids, order = edits.ids.sort()
        self.rows, self.repetition, self.bias = edits.rows[order], edits.repetition[order], edits.bias[order]
        self.allowed = edits.allowed

    def edit(self, raw: Tensor, first: int) -> Tensor:
        """A changed copy of the tile's logits [S, n]."""
        start, end = torch.searchsorted(self.ids, torch.tensor([first, first + raw.shape[1]], device=raw.device)).tolist()
        edited = raw.clone()
        if start < end:
            place = (self.rows[start:end], self.ids[start:end] - first)
            old, repetition = raw[place], self.repetition[start:end]
            edited[place] = torch.where(old > 0, old / repetition, old * repetition) + self.bias[start:end]
        if self.allowed is not None:
            words = self.allowed[:, first // 32 : -(-(first + raw.shape[1]) // 32)]
            bits = (words[..., None] >> torch.arange(32, dtype=torch.int32, device=raw.device)) & 1
            edited = edited.masked_fill(bits.flatten(1)[:, : raw.shape[1]] == 0, -torch.inf)
        return edited


def _edit(raw: Tensor, first: int, editor: _Editor | None, temperature: Tensor | None) -> Tensor:
    edited = raw if editor is None else editor.edit(raw, first)
    return edited if temperature is None else edited / temperature[:, None]
