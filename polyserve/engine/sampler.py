"""Chooses each row's next token from its hidden state, and looks up log-probabilities, without a batch's full logits.

The head gives some survivors of each row: its most likely tokens after edits and temperature, with the log-sum-exp over
the whole vocabulary. Each row then takes one of three ways:
    greedy      the first survivor
    a beam      as many survivors as it may have to choose from
    no filters  the head's own draw, exact over the whole vocabulary
    filters     settled on the survivors where that is certain (`filters`), else on all logits of that row
A row's token is a pure function of (hidden state, parameters, tokens, seed, choice, position): its way depends on
nothing else, and survivors and all logits give the same token. A batch without filters has one survivor a row, which is
the first of many. Log-probabilities are of the model's own logits, in
float32: logit - log-sum-exp.

Shapes  S rows   C channels   V vocabulary   K survivors   N most likely tokens that were asked for
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyserve.engine.filters import Filters, draw, has_filters
from polyserve.engine.logits import TokenEdits, gather_edits
from polyserve.engine.step import NONE_ALLOWED, Candidate
from polyserve.request import TokenLogprob
from polyserve.sampling_params import SamplingParams
from polyserve_kernels import ops
from polyserve_kernels.types import HeadTopK, LogitEdits, PackedWeight

NUM_SURVIVORS = 128  # where any row has filters
NUM_CANDIDATES = 4096  # that are tried next where survivors are too few, before all of the vocabulary is sorted
MAX_LOGITS = 2**22  # that are held at once for rows whose survivors are too few
MIN_TEMPERATURE = 1e-20  # so that no finite logit overflows when divided; as good as greedy

PURPOSE_DRAW = 0  # keys of the random numbers
PURPOSE_FILTERED_DRAW = 1

NOT_FINITE = "the model's logits are not finite numbers at this token"


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Besides its hidden state, what the next token depends on."""

    params: SamplingParams
    choice: int
    position: int  # of the token to be drawn, counted from the beginning of the sequence
    edits: TokenEdits | None
    num_candidates: int = 0  # of a beam, which gets no token


@dataclass(frozen=True, slots=True)
class Drawn:
    token_id: int
    logprob: TokenLogprob | None  # if asked for
    error: str | None = None  # why there is no token; for the client
    candidates: list[Candidate] | None = None  # of a beam


@dataclass(frozen=True, slots=True)
class Draft:
    """What was launched for some rows. Tensors are on the device, and may not have been computed yet."""

    hidden: Tensor  # [S, C]
    rows: Sequence[SampleRow]
    head: HeadTopK
    token_ids: Tensor  # [S], the next token of each row without filters
    raw: Tensor  # [S], its logit

    @property
    def settled(self) -> bool:
        """Whether `token_ids` are the next tokens: filters, edits and beams are the CPU's business."""
        return not any(_is_filtered(x.params) or x.edits is not None or x.num_candidates for x in self.rows)


class Sampler:
    def __init__(self, head_weight: Tensor | PackedWeight, *, soft_cap: float | None) -> None:
        """head_weight: [V, C]."""
        self._weight = head_weight
        self._soft_cap = soft_cap
        self._vocab_size, self._num_channels = head_weight.shape

    def sample(self, hidden: Tensor, rows: Sequence[SampleRow]) -> list[Drawn]:
        """hidden: [S, C], one row for each of `rows`."""
        return self.finish(self.begin(hidden, rows))

    def begin(self, hidden: Tensor, rows: Sequence[SampleRow]) -> Draft:
        """Launch what the head has to compute, without waiting for it."""
        head = self._head(hidden, rows)
        token_ids, raw = head.ids[:, 0], head.raw[:, 0]
        if head.drawn_ids is not None and head.drawn_raw is not None:
            greedy = torch.tensor([row.params.greedy for row in rows], device=hidden.device)
            token_ids, raw = token_ids.where(greedy, head.drawn_ids), raw.where(greedy, head.drawn_raw)
        return Draft(hidden, rows, head, token_ids, raw)

    def finish(self, draft: Draft) -> list[Drawn]:
        """Wait for a draft, and apply filters, which need its hidden states as they were."""
        rows, hidden, head = draft.rows, draft.hidden, _on_cpu(draft.head)
        token_ids, raw = draft.token_ids.cpu(), draft.raw.cpu()
        errors = [_error(*pair) for pair in zip(head.raw_lse.tolist(), head.lse.tolist(), strict=True)]
        filtered = [i for i, row in enumerate(rows) if errors[i] is None and _is_filtered(row.params)]
        if filtered:
            token_ids, raw = token_ids.clone(), raw.clone()
            index, certain = self._draw_from_survivors([rows[i] for i in filtered], head, filtered)
            token_ids[filtered], raw[filtered] = head.ids[filtered, index], head.raw[filtered, index]
            spilled = [i for i, settled in zip(filtered, certain, strict=True) if not settled]
            num_rows = max(1, MAX_LOGITS // self._vocab_size)
            for first in range(0, len(spilled), num_rows):
                part = spilled[first : first + num_rows]
                drawn = self._draw_from_all(hidden[part], [rows[i] for i in part], head.lse[part])
                token_ids[part], raw[part] = drawn
        report = _report(rows, head, token_ids, raw, errors)
        for i, row in enumerate(rows):
            if row.num_candidates and errors[i] != NOT_FINITE:
                report[i] = Drawn(-1, None, candidates=_candidates(head, i, row))
        return report

    def score(self, hidden: Tensor, targets: list[int], *, num_top: int) -> list[TokenLogprob] | None:
        """Log-probabilities of given tokens, None if any is not finite. Row t of hidden [T, C] is the state before
        targets[t]."""
        num_top = min(num_top, self._vocab_size)
        logprobs, top_ids, top_logprobs = ops.token_logprobs(
            hidden,
            self._weight,
            torch.tensor(targets, device=hidden.device),
            num_top=num_top,
            soft_cap=self._soft_cap,
        )
        if not logprobs.isfinite().all():
            return None
        columns = (targets, logprobs.tolist(), top_ids.tolist(), top_logprobs.tolist())
        return [TokenLogprob(*entry) for entry in zip(*columns, strict=True)]

    def _head(self, hidden: Tensor, rows: Sequence[SampleRow]) -> HeadTopK:
        """Everything that is needed of the vocabulary, in one pass over it."""
        uniforms = None
        if not all(row.params.greedy or has_filters(row.params) for row in rows):
            num_tiles = ops.num_vocab_tiles(self._vocab_size, self._num_channels, device=hidden.device)
            uniforms = _uniforms(rows, PURPOSE_DRAW, 2 * num_tiles, hidden.device).view(len(rows), num_tiles, 2)
        num_survivors = NUM_SURVIVORS if any(_is_filtered(row.params) for row in rows) else 1
        return ops.head_topk(
            hidden,
            self._weight,
            k=min(max(num_survivors, *(row.num_candidates for row in rows)), self._vocab_size),
            temperature=_temperatures(rows, hidden.device),
            edits=self._edits(rows),
            uniforms=uniforms,
            num_top=min(max(row.params.logprobs or 0 for row in rows), self._vocab_size),
            soft_cap=self._soft_cap,
        )

    def _edits(self, rows: Sequence[SampleRow]) -> LogitEdits | None:
        return gather_edits([row.edits for row in rows], vocab_size=self._vocab_size, device=self._weight.device)

    def _draw_from_survivors(
        self, rows: Sequence[SampleRow], head: HeadTopK, index: list[int]
    ) -> tuple[list[int], list[bool]]:
        """For rows `index` of the batch: the column of the drawn survivor, and whether no other could be kept."""
        drawn, certain = draw(
            head.values[index].numpy(),
            head.lse[index].numpy(),
            Filters.of([row.params for row in rows], vocab_size=self._vocab_size),
            _fine_uniforms(rows, self._weight.device),
            vocab_size=self._vocab_size,
        )
        return drawn.tolist(), certain.tolist()

    def _draw_from_all(self, hidden: Tensor, rows: Sequence[SampleRow], lse: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and raw logits of a few rows, drawn as from survivors, but from as many tokens as it takes."""
        edits = self._edits(rows)
        raw, values = ops.head_logits(
            hidden, self._weight, edits=edits, temperature=_temperatures(rows, hidden.device), soft_cap=self._soft_cap
        )
        raw, values = raw.cpu(), values.cpu()
        uniforms, token_ids = _fine_uniforms(rows, self._weight.device), []
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


def _is_filtered(params: SamplingParams) -> bool:
    return not params.greedy and has_filters(params)


def _on_cpu(head: HeadTopK) -> HeadTopK:
    tensors = {name: getattr(head, name) for name in HeadTopK.__dataclass_fields__}
    return replace(head, **{name: x.cpu() for name, x in tensors.items() if x is not None})


def _best_first(values: NDArray[np.float32], num_wanted: int) -> NDArray[np.int64]:
    """Ids of the best values, the smaller id first among equals: as many as are wanted, and those equal to the last."""
    num_wanted = min(num_wanted, len(values))
    ids = np.flatnonzero(values >= np.partition(values, -num_wanted)[-num_wanted])
    return ids[np.argsort(-values[ids], kind="stable")]


def _temperatures(rows: Sequence[SampleRow], device: torch.device) -> Tensor | None:
    """[S] float32, 1 for greedy rows; None if all are 1."""
    temperatures = [1.0 if row.params.greedy else max(row.params.temperature, MIN_TEMPERATURE) for row in rows]
    if all(t == 1.0 for t in temperatures):
        return None
    return torch.tensor(temperatures, dtype=torch.float32, device=device)


def _uniforms(rows: Sequence[SampleRow], purpose: int, num_each: int, device: torch.device) -> Tensor:
    """[S, num_each] float32 in (0, 1), of each row's own seed, choice and position."""
    keys = torch.tensor([(row.params.seed, row.choice, row.position) for row in rows]).to(device)  # [S, 3]
    seeds, choices, positions = keys.t().contiguous()
    return ops.random_uniform(seeds, choices, positions, purpose, num_each)


def _fine_uniforms(rows: Sequence[SampleRow], device: torch.device) -> NDArray[np.float64]:
    """[S] in (0, 1): a float32 random number, moved inside its interval of 2**-23 by a second one, so that the tail of
    a large vocabulary is drawn as often as it should be."""
    coarse, fine = _uniforms(rows, PURPOSE_FILTERED_DRAW, 2, device).cpu().double().unbind(1)
    return (coarse + (fine - 0.5) * 2**-23).numpy()


def _error(raw_lse: float, lse: float) -> str | None:
    if not isfinite(raw_lse):
        return NOT_FINITE
    return None if isfinite(lse) else NONE_ALLOWED


def _candidates(head: HeadTopK, i: int, row: SampleRow) -> list[Candidate]:
    """The best tokens of row i, as many as are wanted and allowed."""
    n, num_top, raw_lse = row.num_candidates, row.params.logprobs, head.raw_lse[i]
    top_ids = head.top_ids[i, : num_top or 0].tolist()
    top_logprobs = (head.top_raw[i, : num_top or 0] - raw_lse).tolist()
    columns = head.ids[i, :n], head.values[i, :n] - raw_lse, head.raw[i, :n] - raw_lse
    return [
        Candidate(token_id, score, raw, None if num_top is None else TokenLogprob(token_id, raw, top_ids, top_logprobs))
        for token_id, score, raw in zip(*(column.tolist() for column in columns), strict=True)
        if isfinite(score)
    ]


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
