"""Chooses each row's next token from its hidden state, and looks up log-probabilities, without a batch's full logits.

The head gives a constant number of survivors for each row: its most likely tokens after edits and temperature, with the
log-sum-exp over the whole vocabulary. Each row then takes one of three ways:
    greedy      the first survivor
    no filters  the head's own draw, exact over the whole vocabulary
    filters     settled on the survivors where that is certain (`filters`), else on all logits of that row
A row's token is a pure function of (hidden state, parameters, tokens, seed, choice, position): its way depends on
nothing else, and survivors and all logits give the same token. Log-probabilities are of the model's own logits, in
float32: logit - log-sum-exp.

Shapes  S rows   C channels   V vocabulary   K survivors   N most likely tokens that were asked for
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyserve.engine.filters import Filters, draw, has_filters
from polyserve.engine.logits import TokenEdits, gather_edits
from polyserve.request import TokenLogprob
from polyserve.sampling_params import SamplingParams
from polyserve_kernels import ops
from polyserve_kernels.types import HeadTopK

NUM_SURVIVORS = 128
NUM_CANDIDATES = 4096  # that are tried next where survivors are too few, before all of the vocabulary is sorted
MAX_LOGITS = 2**22  # that are held at once for rows whose survivors are too few
MIN_TEMPERATURE = 1e-20  # so that no finite logit overflows when divided; as good as greedy

PURPOSE_DRAW = 0  # keys of the random numbers
PURPOSE_FILTERED_DRAW = 1

NOT_FINITE = "the model's logits are not finite numbers at this token"
NONE_ALLOWED = "the request's parameters leave no token that could come next"


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Besides its hidden state, what the next token depends on."""

    params: SamplingParams
    choice: int
    position: int  # of the token to be drawn, counted from the beginning of the sequence
    edits: TokenEdits | None


@dataclass(frozen=True, slots=True)
class Drawn:
    token_id: int
    logprob: TokenLogprob | None  # if asked for
    error: str | None = None  # why there is no token; for the client


class Sampler:
    def __init__(self, head_weight: Tensor, *, soft_cap: float | None) -> None:
        """head_weight: [V, C]."""
        self._weight = head_weight
        self._soft_cap = soft_cap
        self._vocab_size, self._num_channels = head_weight.shape

    def sample(self, hidden: Tensor, rows: Sequence[SampleRow]) -> list[Drawn]:
        """hidden: [S, C], one row for each of `rows`."""
        head = self._head(hidden, rows)
        errors = [_error(*pair) for pair in zip(head.raw_lse.tolist(), head.lse.tolist(), strict=True)]
        token_ids, raw = head.ids[:, 0].clone(), head.raw[:, 0].clone()
        sampled = [i for i, row in enumerate(rows) if not row.params.greedy and errors[i] is None]
        filtered = [i for i in sampled if has_filters(rows[i].params)]
        if len(filtered) < len(sampled):
            assert head.drawn_ids is not None
            assert head.drawn_raw is not None
            plain = [i for i in sampled if not has_filters(rows[i].params)]
            token_ids[plain], raw[plain] = head.drawn_ids[plain], head.drawn_raw[plain]
        if filtered:
            index, certain = self._draw_from_survivors([rows[i] for i in filtered], head, filtered)
            token_ids[filtered], raw[filtered] = head.ids[filtered, index], head.raw[filtered, index]
            spilled = [i for i, settled in zip(filtered, certain, strict=True) if not settled]
            num_rows = max(1, MAX_LOGITS // self._vocab_size)
            for first in range(0, len(spilled), num_rows):
                part = spilled[first : first + num_rows]
                drawn = self._draw_from_all(hidden[part], [rows[i] for i in part], head.lse[part])
                token_ids[part], raw[part] = drawn
        return _report(rows, head, token_ids, raw, errors)

    def score(self, hidden: Tensor, targets: list[int], *, num_top: int) -> list[TokenLogprob] | None:
        """Log-probabilities of given tokens, None if any is not finite. Row t of hidden [T, C] is the state before
        targets[t]."""
        num_top = min(num_top, self._vocab_size)
        logprobs, top_ids, top_logprobs = ops.token_logprobs(
            hidden, self._weight, torch.tensor(targets), num_top=num_top, soft_cap=self._soft_cap
        )
        if not logprobs.isfinite().all():
            return None
        columns = (targets, logprobs.tolist(), top_ids.tolist(), top_logprobs.tolist())
        return [TokenLogprob(*entry) for entry in zip(*columns, strict=True)]

    def _head(self, hidden: Tensor, rows: Sequence[SampleRow]) -> HeadTopK:
        """Everything that is needed of the vocabulary, in one pass over it."""
        uniforms = None
        if not all(row.params.greedy or has_filters(row.params) for row in rows):
            num_tiles = ops.num_vocab_tiles(self._vocab_size, self._num_channels)
            uniforms = _uniforms(rows, PURPOSE_DRAW, 2 * num_tiles).view(len(rows), num_tiles, 2)
        return ops.head_topk(
            hidden,
            self._weight,
            k=min(NUM_SURVIVORS, self._vocab_size),
            temperature=_temperatures(rows),
            edits=gather_edits([row.edits for row in rows], vocab_size=self._vocab_size),
            uniforms=uniforms,
            num_top=min(max(row.params.logprobs or 0 for row in rows), self._vocab_size),
            soft_cap=self._soft_cap,
        )

    def _draw_from_survivors(
        self, rows: Sequence[SampleRow], head: HeadTopK, index: list[int]
    ) -> tuple[list[int], list[bool]]:
        """For rows `index` of the batch: the column of the drawn survivor, and whether no other could be kept."""
        drawn, certain = draw(
            head.values[index].numpy(),
            head.lse[index].numpy(),
            Filters.of([row.params for row in rows], vocab_size=self._vocab_size),
            _fine_uniforms(rows),
            vocab_size=self._vocab_size,
        )
        return drawn.tolist(), certain.tolist()

    def _draw_from_all(self, hidden: Tensor, rows: Sequence[SampleRow], lse: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and raw logits of a few rows, drawn as from survivors, but from as many tokens as it takes."""
        edits = gather_edits([row.edits for row in rows], vocab_size=self._vocab_size)
        raw, values = ops.head_logits(
            hidden, self._weight, edits=edits, temperature=_temperatures(rows), soft_cap=self._soft_cap
        )
        uniforms, token_ids = _fine_uniforms(rows), []
        for i, row in enumerate(rows):  # one at a time: a dozen arrays in float64
            filters = Filters.of([row.params], vocab_size=self._vocab_size)
            for num_wanted in (NUM_CANDIDATES, self._vocab_size):
                ids = _best_first(values[i].numpy(), num_wanted)
                drawn, certain = draw(
                    values[i].numpy()[None, ids],
                    lse[i : i + 1].numpy(),
                    filters,
                    uniforms[i : i + 1],
                    vocab_size=self._vocab_size,
                )
                if certain[0]:
                    token_ids.append(int(ids[drawn[0]]))
                    break
        chosen = torch.tensor(token_ids)
        return chosen, raw.gather(1, chosen[:, None])[:, 0]


def _best_first(values: NDArray[np.float32], num_wanted: int) -> NDArray[np.int64]:
    """Ids of the best values, the smaller id first among equals: as many as are wanted, and those equal to the last."""
    num_wanted = min(num_wanted, len(values))
    ids = np.flatnonzero(values >= np.partition(values, -num_wanted)[-num_wanted])
    return ids[np.argsort(-values[ids], kind="stable")]


def _temperatures(rows: Sequence[SampleRow]) -> Tensor | None:
    """[S] float32, 1 for greedy rows; None if all are 1."""
    temperatures = [1.0 if row.params.greedy else max(row.params.temperature, MIN_TEMPERATURE) for row in rows]
    return None if all(t == 1.0 for t in temperatures) else torch.tensor(temperatures, dtype=torch.float32)


def _uniforms(rows: Sequence[SampleRow], purpose: int, num_each: int) -> Tensor:
    """[S, num_each] float32 in (0, 1), of each row's own seed, choice and position."""
    seeds, choices, positions = zip(*((row.params.seed, row.choice, row.position) for row in rows), strict=True)
    return ops.random_uniform(torch.tensor(seeds), torch.tensor(choices), torch.tensor(positions), purpose, num_each)


def _fine_uniforms(rows: Sequence[SampleRow]) -> NDArray[np.float64]:
    """[S] in (0, 1): a float32 random number, moved inside its interval of 2**-23 by a second one, so that the tail of
    a large vocabulary is drawn as often as it should be."""
    coarse, fine = _uniforms(rows, PURPOSE_FILTERED_DRAW, 2).double().unbind(1)
    return (coarse + (fine - 0.5) * 2**-23).numpy()


def _error(raw_lse: float, lse: float) -> str | None:
    if not isfinite(raw_lse):
        return NOT_FINITE
    return None if isfinite(lse) else NONE_ALLOWED


def _report(
    rows: Sequence[SampleRow], head: HeadTopK, token_ids: Tensor, raw: Tensor, errors: list[str | None]
) -> list[Drawn]:
    """The drawn tokens with the log-probabilities that were asked for, as plain values."""
    ids = token_ids.tolist()
    logprobs: list[TokenLogprob | None] = [None] * len(rows)
    if any(row.params.logprobs is not None for row in rows):
        wanted = [row.params.logprobs for row in rows]
        values = (raw - head.raw_lse).tolist()
        top_ids, top_values = head.top_ids.tolist(), (head.top_raw - head.raw_lse[:, None]).tolist()
        logprobs = [
            None if n is None else TokenLogprob(ids[i], values[i], top_ids[i][:n], top_values[i][:n])
            for i, n in enumerate(wanted)
        ]
    return [Drawn(*row) for row in zip(ids, logprobs, errors, strict=True)]
