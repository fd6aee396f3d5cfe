"""What sampling needs of the head: hidden states times the vocabulary, a tile of VOCAB_TILE ids at a time.

Logits   a tile is a whole number of weight tiles of `matmul`: a logit has the same bits wherever it is computed.
Edits    (logit > 0 ? logit / repetition : logit * repetition) + bias, -inf where not allowed, then / temperature
Draw     tiles race with -log(-log(u0)) + log-sum-exp of the tile: each wins with its share of the total. Inside the
         winner u1 draws by inverse CDF. Whatever the order of tiles, it is one exact draw.
Shapes   S rows   n ids of a tile   K candidates   hidden [S, C]   weight [V, C]
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from polyserve_kernels.reference.matmul import float32_product
from polyserve_kernels.reference.vocab_fold import BestSoFar, LogSumExp
from polyserve_kernels.types import HeadTopK, LogitEdits

VOCAB_TILE = 8192  # ids; a multiple of every weight tile


def num_vocab_tiles(vocab_size: int, channels: int) -> int:  # noqa: ARG001  (other backends' tiles depend on it)
    return -(-vocab_size // VOCAB_TILE)


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
    editor = _Editor(edits, temperature)
    best, top = BestSoFar(k, hidden), BestSoFar(num_top, hidden)
    lse, raw_lse = LogSumExp(hidden), LogSumExp(hidden)
    draw = _Draw(uniforms) if uniforms is not None else None
    for first, raw in logit_tiles(hidden, weight, soft_cap):
        edited = editor.edit(raw, first)
        best.add(edited, first, raw)
        top.add(raw, first, raw)
        tile_lse = lse.add(edited)
        if not editor.idle:
            raw_lse.add(raw)
        if draw is not None:
            draw.add(edited, tile_lse, first, raw)
    best.sort()
    top.sort()
    return HeadTopK(
        ids=best.ids,
        values=best.values,
        raw=best.raw,
        lse=lse.value(),
        raw_lse=lse.value() if editor.idle else raw_lse.value(),
        drawn_ids=draw.ids if draw is not None else None,
        drawn_raw=draw.raw if draw is not None else None,
        top_ids=top.ids,
        top_raw=top.raw,
    )


def head_logits(
    hidden: Tensor, weight: Tensor, *, edits: LogitEdits | None, temperature: Tensor | None, soft_cap: float | None
) -> tuple[Tensor, Tensor]:
    editor = _Editor(edits, temperature)
    pairs = [(raw, editor.edit(raw, first)) for first, raw in logit_tiles(hidden, weight, soft_cap)]
    raw, edited = (torch.cat(tiles, dim=1) for tiles in zip(*pairs, strict=True))
    return raw, edited


def logit_tiles(hidden: Tensor, weight: Tensor, soft_cap: float | None) -> Iterator[tuple[int, Tensor]]:
    """First id and raw logits [S, n] float32 of each tile, in ascending order."""
    for first in range(0, len(weight), VOCAB_TILE):
        raw = float32_product(hidden, weight[first : first + VOCAB_TILE])
        yield first, raw if soft_cap is None else soft_cap * torch.tanh(raw / soft_cap)


class _Editor:
    """Edits and temperature, applied a tile at a time. Entries are put in order of id: a tile's are one slice."""

    def __init__(self, edits: LogitEdits | None, temperature: Tensor | None) -> None:
        self.idle = edits is None and temperature is None
        self._edits = edits
        self._temperature = temperature
        if edits is not None:
            self._ids, order = edits.ids.sort()
            self._rows, self._repetition, self._bias = (x[order] for x in (edits.rows, edits.repetition, edits.bias))

    def edit(self, raw: Tensor, first: int) -> Tensor:
        """The edited values of a tile of raw logits [S, n] that begins with id `first`."""
        edited = raw
        if self._edits is not None:
            edited = self._change_entries(raw, first)
            if self._edits.allowed is not None:
                edited = edited.masked_fill(~_unpack(self._edits.allowed, first, raw.shape[1]), -torch.inf)
        return edited if self._temperature is None else edited / self._temperature[:, None]

    def _change_entries(self, raw: Tensor, first: int) -> Tensor:
        limits = torch.tensor([first, first + raw.shape[1]], device=raw.device)
        start, end = torch.searchsorted(self._ids, limits).tolist()
        place = (self._rows[start:end], self._ids[start:end] - first)
        logits, repetition = raw[place], self._repetition[start:end]
        changed = torch.where(logits > 0, logits / repetition, logits * repetition) + self._bias[start:end]
        return raw.index_put(place, changed)


def _unpack(mask: Tensor, first: int, count: int) -> Tensor:
    """Bits [first, first + count) of each row of a packed mask [S, words] int32, as bool. first is a multiple of 32."""
    words = mask[:, first // 32 : -(-(first + count) // 32), None]
    bits = torch.arange(32, dtype=torch.int32, device=mask.device)
    return ((words >> bits) & 1).bool().flatten(1)[:, :count]


class _Draw:
    """The leader so far of each row's race of tiles, and the id drawn inside it. Sums are float64: u1 counts fully."""

    def __init__(self, uniforms: Tensor) -> None:
        self._noise = -torch.log(-torch.log(uniforms[..., 0].double()))  # [S, tiles]
        self._inside = uniforms[..., 1].double()
        self._lead = self._noise.new_full((len(uniforms),), -torch.inf)
        self.ids = torch.full((len(uniforms),), -1, device=uniforms.device)  # [S]
        self.raw = uniforms.new_full((len(uniforms),), -torch.inf)  # [S]

    def add(self, edited: Tensor, tile_lse: Tensor, first: int, raw: Tensor) -> None:
        """Let a tile race: its edited values and raw logits [S, n], and its log-sum-exp [S]."""
        tile = first // VOCAB_TILE
        race = self._noise[:, tile] + tile_lse
        rows = (race > self._lead).nonzero().squeeze(1)
        if len(rows) == 0:
            return
        sums = edited[rows].softmax(-1).double().cumsum(-1)
        places = torch.searchsorted(sums, sums[:, -1:] * self._inside[rows, tile, None], right=True)
        self._lead[rows] = race[rows]
        self.ids[rows] = places[:, 0] + first
        self.raw[rows] = raw[rows].gather(1, places)[:, 0]
