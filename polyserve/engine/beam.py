"""Beam search as such: which answers are followed, which are done, and when it ends. It knows no blocks or steps.

    advance(candidates of every beam) -> the next beams, as (parent, token)    until `ended`; then `best`

A beam's total is the sum of its tokens' log-probabilities after edits (penalties, biases, what is allowed), normalised
as the model's own are, so that what is not allowed takes nothing away from what is. An answer's score is its total over
length ** length_penalty, its last token counted.

Of all candidates the best `num_beams` that go on are the next beams. Of the best `num_beams` alone those that end
(stop token, or as long as allowed) become answers, and the best `num_beams` answers are kept. While fewer than these
are found the search goes on. Then it ends, by `early_stopping`:
    true    at once, as with one beam in any case: that is greedy
    false   when the best beam's score at its present length is no better than the worst answer's
    never   when its total over the longest possible length ** length_penalty is not (the present one, if that is <= 0)
Source  the rules of `transformers`' beam search, of which the ids are the same
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

from polyserve.engine.step import Candidate
from polyserve.request import FinishReason, TokenLogprob
from polyserve.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Beam:
    """Tokens of an answer, as far as it goes."""

    tokens: list[int]
    logprobs: list[TokenLogprob]  # of the tokens, if they are asked for
    total: float
    cumulative_logprob: float  # the model's own

    def extended(self, candidate: Candidate) -> "Beam":
        return Beam(
            [*self.tokens, candidate.token_id],
            self.logprobs if candidate.logprob is None else [*self.logprobs, candidate.logprob],
            self.total + candidate.score,
            self.cumulative_logprob + candidate.raw_logprob,
        )


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    beam: Beam
    score: float
    finish_reason: FinishReason
    stop_reason: int | None  # the stop token, if it is not the model's end of sequence


class BeamSearch:
    def __init__(self, params: SamplingParams, *, max_tokens: int, eos_ids: Collection[int]) -> None:
        self._params = params
        self._max_tokens = max_tokens
        self._eos_ids = frozenset(() if params.ignore_eos else eos_ids)
        self._stop_ids = frozenset(params.stop_token_ids) - self._eos_ids
        self._answers: list[FoundAnswer] = []  # best first
        self._num_agreed = 0
        self.beams = [Beam([], [], 0.0, 0.0)]  # best first
        self.ended = False

    def advance(self, candidates: Sequence[Sequence[Candidate]]) -> list[tuple[int, int]]:
        """candidates: of each beam the best next tokens, best first. Returns the next beams; none if it has ended."""
        ranked = sorted(
            (
                (-(beam.total + candidate.score), index, rank)
                for index, beam in enumerate(self.beams)
                for rank, candidate in enumerate(candidates[index])
            ),
        )  # of equal ones the earlier beam's, then the smaller token id, come first
        going_on: list[tuple[int, Candidate]] = []
        for place, (_, index, rank) in enumerate(ranked):
            candidate = candidates[index][rank]
            reason = self._end_of(self.beams[index], candidate)
            if reason is None:
                going_on.append((index, candidate))
            elif place < self._params.num_beams:
                self._keep(self.beams[index].extended(candidate), *reason)
            if len(going_on) == self._params.num_beams and place >= self._params.num_beams:
                break
        going_on = going_on[: self._params.num_beams]
        self.beams = [self.beams[index].extended(candidate) for index, candidate in going_on]
        self.ended = not self.beams or self._settled()
        return [] if self.ended else [(index, candidate.token_id) for index, candidate in going_on]

    @property
    def best(self) -> list[FoundAnswer]:
        """The answers to give, best first: n, or fewer if no more are possible."""
        return self._answers[: self._params.n]

    def num_agreed(self) -> int:
        """How many tokens all answers will begin with."""
        beams = [*self.beams, *(answer.beam for answer in self.best)]
        columns = zip(*(islice(beam.tokens, self._num_agreed, None) for beam in beams), strict=False)
        for column in columns:
            if len(set(column)) > 1:
                break
            self._num_agreed += 1
        return self._num_agreed

    def _end_of(self, beam: Beam, candidate: Candidate) -> tuple[FinishReason, int | None] | None:
        """Whether and why the answer ends with this token."""
        if candidate.token_id in self._eos_ids:
            return "stop", None
        if candidate.token_id in self._stop_ids:
            return "stop", candidate.token_id
        return ("length", None) if len(beam.tokens) + 1 >= self._max_tokens else None

    def _keep(self, beam: Beam, reason: FinishReason, stop_reason: int | None) -> None:
        self._answers.append(FoundAnswer(beam, self._score(beam, len(beam.tokens)), reason, stop_reason))
        self._answers.sort(key=lambda answer: -answer.score)
        del self._answers[self._params.num_beams :]

    def _settled(self) -> bool:
        """Whether no beam can become one of the best answers, in the sense of `early_stopping`."""
        params = self._params
        if len(self._answers) < params.num_beams:
            return False
        if params.early_stopping is True or params.num_beams == 1:
            return True
        at_any_length = params.early_stopping == "never" and params.length_penalty > 0
        length = self._max_tokens if at_any_length else len(self.beams[0].tokens)
        return self._score(self.beams[0], length) <= self._answers[-1].score

    def _score(self, beam: Beam, length: int) -> float:
        score: float = beam.total / length**self._params.length_penalty
        return score
