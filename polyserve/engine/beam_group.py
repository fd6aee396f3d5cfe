"""The sequences that follow the beams of one request, and what its client has heard.

A group has as many sequences as beams, its slots, all of the request's age. The first computes the prompt. When all
beams have candidates, `BeamSearch` chooses the next ones: of a beam that goes on in several ways the first stays in its
slot, the others move into slots whose beams are given up, and begin with its blocks.

Every choice hears the tokens that all answers will begin with as soon as this is known, and the rest at the end.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from polyserve.engine.beam import Beam, BeamSearch
from polyserve.engine.sequence import Sequence
from polyserve.request import Request, SequenceOutput


@dataclass(frozen=True, slots=True)
class Moves:
    """What the next beams mean for the slots."""

    appended: list[tuple[Sequence, int]]  # goes on where it is, with this token
    moved: list[tuple[Sequence, list[int], list[bytes]]]  # becomes these tokens, whose full blocks have these names
    given_up: list[Sequence]


class BeamGroup:
    def __init__(self, request: Request, slots: list[Sequence], *, eos_ids: Collection[int]) -> None:
        self._request = request
        self._slots = slots
        self._beams = slots[:1]  # in the order of the search's
        self._search = BeamSearch(request.params, max_tokens=slots[0].max_tokens, eos_ids=eos_ids)
        answered = request.answered or {choice: [] for choice in range(request.params.n)}
        self._num_told = {choice: len(tokens) for choice, tokens in answered.items()}  # of choices that go on

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    @property
    def beams(self) -> list[Sequence]:
        return self._beams

    @property
    def choices(self) -> list[int]:
        """Those that somebody waits for."""
        return list(self._num_told)

    @property
    def num_running(self) -> int:
        return sum(bool(seq.block_table) for seq in self._beams)

    @property
    def undecided(self) -> bool:
        return any(seq.candidates is None for seq in self._beams)

    @property
    def ended(self) -> bool:
        return self._search.ended

    @property
    def hopeless(self) -> bool:
        """Whether it has ended without any answer."""
        return self.ended and not self._search.best

    def abort(self, choice: int | None) -> bool:
        """Nobody waits for this choice any more, or for any. Returns whether somebody waits for another one."""
        if choice is None:
            self._num_told.clear()
        else:
            self._num_told.pop(choice, None)
        return bool(self._num_told)

    def advance(self) -> Moves:
        """Choose the next beams."""
        before = self._beams
        chosen = self._search.advance([seq.candidates or [] for seq in before])
        parents = {index for index, _ in chosen}
        staying = [seq for index, seq in enumerate(before) if index in parents]
        free = [slot for slot in self._slots if slot not in staying]
        tokens = [seq.tokens for seq in before]
        moves = Moves([], [], [seq for seq in before if seq not in staying])
        self._beams = []
        for index, token_id in chosen:
            if index in parents:
                parents.remove(index)
                seq = before[index]
                moves.appended.append((seq, token_id))
            else:
                seq = free.pop(0)
                moves.moved.append((seq, [*tokens[index], token_id], before[index].digests.copy()))
            self._beams.append(seq)
        return moves

    def outputs(self) -> list[SequenceOutput]:
        """What is new for each choice."""
        if self.ended:
            return [self._ending(choice) for choice in self._num_told]
        num_agreed, beam = self._search.num_agreed(), self._search.beams[0]
        return [
            self._output(choice, beam, num_agreed) for choice, start in self._num_told.items() if num_agreed > start
        ]

    def _ending(self, choice: int) -> SequenceOutput:
        """The rest of a choice's answer. If there are fewer answers than choices, the last one stands for the rest."""
        answer = self._search.best[: choice + 1][-1]
        output = self._output(choice, answer.beam, len(answer.beam.tokens))
        return replace(
            output,
            finish_reason=answer.finish_reason,
            stop_reason=answer.stop_reason,
            cumulative_logprob=answer.beam.cumulative_logprob,
        )

    def _output(self, choice: int, beam: Beam, end: int) -> SequenceOutput:
        """What a choice has not heard of the first `end` tokens of a beam."""
        start, self._num_told[choice] = self._num_told[choice], end
        prompt, prompt_logprobs = self._slots[0], None
        if choice == 0:
            prompt_logprobs, prompt.prompt_logprobs = prompt.prompt_logprobs, None
        return SequenceOutput(
            self._request.request_id,
            choice,
            beam.tokens[start:end],
            logprobs=None if self._request.params.logprobs is None else beam.logprobs[start:end],
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=(prompt.num_cached_tokens or 0) if choice == 0 else 0,
        )
