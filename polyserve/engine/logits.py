"""What a request's parameters change in the logits before temperature: penalties, biases, tokens that are not allowed.

For each token id that is touched there is one entry (id, repetition, bias), which the head applies in its tiles:
    new = (logit > 0 ? logit / repetition : logit * repetition) + bias
    bias = -frequency_penalty * count - presence_penalty * (count > 0) + logit_bias, or -inf for a stop token too early
    count: how often the id came in the answer; repetition also counts the prompt
An entry is a pure function of parameters and tokens: it is computed from its count and never added to, so a sequence
that is built again after a preemption has the same bits. A new token touches one entry.
"""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from polyserve.sampling_params import SamplingParams
from polyserve_kernels.types import LogitEdits


class TokenEdits:
    """The entries of one sequence, in arrays that grow with it."""

    def __init__(
        self,
        params: SamplingParams,
        tokens: Sequence[int],
        prompt_len: int,
        *,
        eos_ids: Collection[int],
        vocab_size: int,
    ) -> None:
        self._params = params
        self._counts = Counter(tokens[prompt_len:])
        self._num_answered = len(tokens) - prompt_len
        self._repeated = set(tokens) if params.repetition_penalty != 1.0 else set()
        self._stop_ids = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else eos_ids)
        self._places: dict[int, int] = {}  # id -> its place in the arrays
        self._ids = np.zeros(16, dtype=np.int64)
        self._repetition = np.ones(16, dtype=np.float32)
        self._bias = np.zeros(16, dtype=np.float32)
        counted = self._counts if params.frequency_penalty or params.presence_penalty else ()
        early = self._stop_ids if self._num_answered < params.min_tokens else ()
        for token_id in {*self._repeated, *counted, *early, *params.logit_bias}:
            self._refresh(token_id)
        self._listed = None if params.allowed_token_ids is None else _bits_of(params.allowed_token_ids, vocab_size)
        self.allowed = self._listed

    @staticmethod
    def needed_by(params: SamplingParams) -> bool:
        return bool(
            params.repetition_penalty != 1.0
            or params.frequency_penalty
            or params.presence_penalty
            or params.logit_bias
            or params.allowed_token_ids is not None
            or params.min_tokens
            or params.grammar_field is not None
        )

    def append(self, token_id: int) -> None:
        """Take in a token of the answer."""
        params = self._params
        self._counts[token_id] += 1
        self._num_answered += 1
        if params.repetition_penalty != 1.0:
            self._repeated.add(token_id)
        if params.repetition_penalty != 1.0 or params.frequency_penalty or params.presence_penalty:
            self._refresh(token_id)
        if self._num_answered == params.min_tokens:
            for stop_id in self._stop_ids:
                self._refresh(stop_id)

    def restrict(self, mask: NDArray[np.int32]) -> None:
        """At the next position, allow only tokens whose bit is set in `mask` [V / 32]."""
        self.allowed = mask if self._listed is None else mask & self._listed

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._places)]

    @property
    def repetition(self) -> NDArray[np.float32]:
        return self._repetition[: len(self._places)]

    @property
    def bias(self) -> NDArray[np.float32]:
        return self._bias[: len(self._places)]

    def _refresh(self, token_id: int) -> None:
        """Compute the entry of `token_id`, which is new or has changed."""
        params, place = self._params, self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.resize(self._ids, 2 * place)
            self._repetition = np.resize(self._repetition, 2 * place)
            self._bias = np.resize(self._bias, 2 * place)
        bias, count = params.logit_bias.get(token_id, 0.0), self._counts[token_id]
        if count:
            bias -= params.frequency_penalty * count + params.presence_penalty
        if token_id in self._stop_ids and self._num_answered < params.min_tokens:
            bias = -np.inf
        self._ids[place] = token_id
        self._repetition[place] = params.repetition_penalty if token_id in self._repeated else 1.0
        self._bias[place] = bias


def gather_edits(
    rows: Sequence[TokenEdits | None], *, vocab_size: int, device: torch.device | None = None
) -> LogitEdits | None:
    """The edits of a batch, row s those of `rows[s]`; None if there are none."""
    edited = [(row, edits) for row, edits in enumerate(rows) if edits is not None]
    if not edited:
        return None
    allowed = None
    if any(edits.allowed is not None for _, edits in edited):
        allowed = np.full((len(rows), _num_words(vocab_size)), -1, dtype=np.int32)  # every bit: everything is allowed
        for row, edits in edited:
            if edits.allowed is not None:
                allowed[row] = edits.allowed
    lengths = [len(edits.ids) for _, edits in edited]
    arrays = {
        "rows": np.repeat([row for row, _ in edited], lengths),
        "ids": np.concatenate([edits.ids for _, edits in edited]),
        "repetition": np.concatenate([edits.repetition for _, edits in edited]),
        "bias": np.concatenate([edits.bias for _, edits in edited]),
    }
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return LogitEdits(**tensors, allowed=None if allowed is None else torch.from_numpy(allowed).to(device))


def _num_words(vocab_size: int) -> int:
    return -(-vocab_size // 32)


def _bits_of(token_ids: Sequence[int], vocab_size: int) -> NDArray[np.int32]:
    """[ceil(V / 32)], bit v % 32 of word v // 32 is set for each of `token_ids`."""
    bits = np.zeros(_num_words(vocab_size) * 32, dtype=np.bool_)
    bits[list(token_ids)] = True
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)
