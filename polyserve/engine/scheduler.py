"""Decides what each step computes, and what became of a sequence when the step is done.

One rule: a running sequence is given its next tokens, the first in rank first, as far as the step's token budget and
the blocks reach; what is left of the budget admits waiting sequences by rank. A sequence that has one token pending
decodes, one with many has its prompt computed in chunks, and one step does both: whoever decodes gets its token in
every step. If blocks run out, the last running sequence gives all of its own back and waits to be computed again: its
tokens are kept, and they give the same bits. The sequences of a step that could not be computed are computed again one
by one, until each has its next token, so that a fault ends nobody but whose it is.

A beam waits for those beside it: their next tokens are chosen together (`beam_group`). One that moves away from another
enters the queue as well, and begins with the other's blocks. If all that runs waits for one that finds no room, the
last in rank make room for it.

A request of n choices begins as its first one. When that has computed the prompt, the others enter the queue, ahead of
younger requests, and begin with its blocks.

A step may be scheduled while the one before it is under way. A sequence that is sampled there goes on with a token that
is awaited, unless it is known to be the answer's last; whether it ends the answer shows later, and what was computed
after it is dropped.

Rank    the lower priority first, then the older
Words   running: holds blocks for every token it has   waiting: holds none   asleep: waits for another choice's prompt
        live: any of these, or a beam that lost its blocks while it waits for the others
Source  continuous batching: Orca, https://www.usenix.org/conference/osdi22/presentation/yu
        chunked prefill beside decoding: Sarathi-Serve, https://arxiv.org/abs/2403.02310
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count

from polyserve.engine.beam_group import BeamGroup, Moves
from polyserve.engine.block_manager import BlockManager
from polyserve.engine.sequence import Sequence
from polyserve.engine.step import NONE_ALLOWED, Candidate, Chunk, NewSequence, Sampled, Step, StepResult
from polyserve.request import FinishReason, Request, SequenceOutput
from polyserve.sampling_params import SamplingParams

LEAST_PROMPT_TOKENS = 16  # in a step that is shortened for those that decode


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    num_preemptions: int  # since the start
    prefix_query_tokens: int  # since the start
    prefix_hit_tokens: int  # since the start
    # of steps since the start, which the engine times
    num_steps: int = 0
    step_tokens: int = 0
    step_seconds: float = 0.0
    step_predicted_seconds: float = 0.0


class Scheduler:
    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        eos_ids: Iterable[int],
    ) -> None:
        """`blocks` has at least enough for one sequence of `max_model_len` tokens."""
        self._blocks = blocks
        self._max_num_seqs = min(max_num_seqs, max_num_batched_tokens)  # so that all that run advance in every step
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_model_len = max_model_len
        self._eos_ids = frozenset(eos_ids)
        self._seq_ids = count()
        self._live: dict[int, Sequence] = {}
        self._requests: dict[str, dict[int, Sequence]] = {}  # live choices of each request, in order
        self._asleep: dict[str, list[Sequence]] = {}  # choices that wait for their request's prompt, in order
        self._waiting: list[Sequence] = []  # by rank
        self._running: list[Sequence] = []  # by rank
        self._groups: dict[str, BeamGroup] = {}  # of requests that use beam search
        self._released: list[int] = []  # the runner has not been told yet
        self._suspects: list[Sequence] = []  # of a step that could not be computed
        self._appended: dict[int, int] = {}  # nor of these
        self._num_preemptions = self._prefix_query_tokens = self._prefix_hit_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    @property
    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._live) - len(self._running),
            num_free_blocks=self._blocks.pool.num_free,
            num_blocks=self._blocks.pool.num_blocks,
            num_preemptions=self._num_preemptions,
            prefix_query_tokens=self._prefix_query_tokens,
            prefix_hit_tokens=self._prefix_hit_tokens,
        )

    def add(self, request: Request) -> None:
        """Queue a request that fits `max_model_len`. One that goes on is computed again as far as it was answered."""
        assert request.request_id not in self._requests, f"request id {request.request_id!r} is in use"
        params, room = request.params, self.room_for(request)
        answered = request.answered or {choice: [] for choice in range(params.n)}
        has_beams = _has_beams(params)
        if has_beams:
            answered = {slot: [] for slot in range(params.num_beams)}  # the search begins anew, and takes the same way
        choices = [
            Sequence(
                seq_id=next(self._seq_ids),
                request_id=request.request_id,
                choice=choice,
                params=params,
                tokens=request.prompt_ids + answer,
                prompt_len=len(request.prompt_ids),
                max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
                pooling=request.pooling,
                is_beam=has_beams,
                prompt_logprobs=[None] if choice == 0 and params.prompt_logprobs is not None and not answer else None,
            )
            for choice, answer in answered.items()
        ]
        insort(self._waiting, choices[0], key=_rank)
        if has_beams:
            group = self._groups[request.request_id] = BeamGroup(request, choices, eos_ids=self._eos_ids)
            choices = group.beams
        elif len(choices) > 1:
            self._asleep[request.request_id] = choices[1:]
        self._live.update((seq.seq_id, seq) for seq in choices)
        self._requests[request.request_id] = {seq.choice: seq for seq in choices}

    def room_for(self, request: Request) -> int:
        """How long an answer can be at most: by the model's length, and by the blocks that beams need in the end."""
        prompt_len, params = len(request.prompt_ids), request.params
        room = self._max_model_len - prompt_len
        return min(room, self._blocks.room_for_forks(prompt_len, params.num_beams)) if _has_beams(params) else room

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """Forget one choice of a request, or all, without another word. An unknown id has just ended; it is ignored."""
        group = self._groups.get(request_id)
        if group is not None:
            if not group.abort(choice):
                self._end_group(request_id)
            return
        choices = self._requests.get(request_id, {})
        for seq in [seq for seq in choices.values() if choice is None or seq.choice == choice]:
            self._end(seq)

    def requests_of(self, step: Step) -> set[str]:
        """The ids of the requests that a step computes, if they are live."""
        return {self._live[chunk.seq_id].request_id for chunk in step.chunks if chunk.seq_id in self._live}

    @property
    def answering(self) -> bool:
        """Whether a sequence that runs has begun its answer: its client waits for the next token."""
        return any(seq.num_answered for seq in self._running)

    def schedule(self, max_tokens: int | None = None) -> Step:
        """The next step. It has no chunks only if nothing is live, or all that is left awaits a last token.

        max_tokens: fewer tokens than usual, but each that decodes gets its one, and prompts a few, all the same.
        """
        if self._suspects:
            return self._schedule_alone(self._suspects[0])
        budget = self._max_num_batched_tokens
        if max_tokens is not None:
            budget = min(budget, max(max_tokens, len(self._running) + LEAST_PROMPT_TOKENS))
        num_decoding = sum(seq.num_pending == 1 for seq in self._running)  # that have not had their turn
        chunks: list[Chunk] = []
        admitted: list[NewSequence] = []
        copies: list[tuple[int, int]] = []

        number = 0
        while number < len(self._running) and budget:
            seq, number = self._running[number], number + 1
            num_decoding -= seq.num_pending == 1
            share = min(seq.num_pending, budget - num_decoding)
            if share <= 0:
                continue
            while not self._blocks.cover(seq):
                if self._preempt_last() is seq:
                    break
            else:
                chunks.append(self._chunk(seq, share))
                budget -= share

        while self._waiting and budget and self._has_place_for(self._waiting[0]):
            seq = self._waiting[0]
            if seq.num_steps:
                break  # preempted while it computed: what it awaits belongs to its beginning
            copied = self._admit(seq)
            if copied is None and not chunks and self._running and not any(other.num_steps for other in self._running):
                self._preempt_last()
                continue
            if copied is None:
                break
            copies += copied
            admitted.append(_as_new(seq))
            chunks.append(self._chunk(seq, budget))
            budget -= chunks[-1].num_tokens
        return self._step(chunks, admitted, copies)

    def _schedule_alone(self, seq: Sequence) -> Step:
        """A step of nobody else, so that a fault in it is this sequence's own."""
        if seq.num_steps:
            return Step([])
        if seq.block_table:
            if self._blocks.cover(seq):
                return self._step([self._chunk(seq, self._max_num_batched_tokens)], [], [])
            self._give_back(seq)
        while (copies := self._admit(seq)) is None:
            self._preempt_last()
        admitted = [_as_new(seq)]
        return self._step([self._chunk(seq, self._max_num_batched_tokens)], admitted, copies)

    def _step(self, chunks: list[Chunk], admitted: list[NewSequence], copies: list[tuple[int, int]]) -> Step:
        if not chunks:
            return Step([])
        released, self._released = self._released, []
        appended, self._appended = self._appended, {}
        return Step(chunks, admitted, released, copies, appended)

    def update(self, step: Step, result: StepResult) -> list[SequenceOutput]:
        """Take in what the runner answered. Sequences that ended since the step was made are passed over."""
        outputs: list[SequenceOutput] = []
        failed = {failure.seq_id: failure for failure in result.failed}
        for part in result.prompt_logprobs:
            if (seq := self._live.get(part.seq_id)) is not None and seq.prompt_logprobs is not None:
                seq.prompt_logprobs[part.start :] = part.entries  # after a preemption once more: the same values
        for vector in result.pooled:
            if (seq := self._live.get(vector.seq_id)) is not None:
                seq.pooled = vector.values
        for chunk in step.chunks:
            if (seq := self._live.get(chunk.seq_id)) is None:
                continue
            if seq.seq_id in failed:
                failure = failed[seq.seq_id]
                outputs += self._fail(seq, failure.message, refused_param=failure.refused_param)
                continue
            num_computed = chunk.start + chunk.num_tokens
            seq.num_steps -= 1
            if not seq.block_table:
                continue  # it was preempted meanwhile
            self._blocks.name_computed(seq, num_computed)
            seq.num_stored = num_computed
            if seq.prompt_stored:
                self._wake(self._asleep.pop(seq.request_id, []))
                if seq.max_tokens == 0:
                    outputs += [
                        self._finish(choice, "length") for choice in list(self._requests[seq.request_id].values())
                    ]
        for sampled in result.sampled:
            if (seq := self._live.get(sampled.seq_id)) is not None:
                outputs.append(self._append(seq, sampled))
        for found in result.candidates:
            if (seq := self._live.get(found.seq_id)) is not None:
                outputs += self._take_candidates(seq, found.candidates)
        return outputs

    def fail(self, step: Step, message: str) -> list[SequenceOutput]:
        """A step could not be computed. Each of its sequences is tried again alone; one that fails alone is ended.

        So is one whose next step is under way already. What earlier steps computed stays good.
        """
        live = [self._live[chunk.seq_id] for chunk in step.chunks if chunk.seq_id in self._live]
        tried_again = [seq for seq in live if len(step.chunks) > 1 and seq.num_steps == 1 and seq.block_table]
        for seq in tried_again:
            seq.num_steps = seq.num_awaited = 0
            self._give_back(seq)
        self._suspects += tried_again
        outputs: list[SequenceOutput] = []
        for seq in live:
            if seq not in tried_again and seq.seq_id in self._live:  # a beam ends those beside it as well
                outputs += self._fail(seq, message)
        return outputs

    # ---- between waiting and running ----

    def _chunk(self, seq: Sequence, budget: int) -> Chunk:
        start, num_tokens = seq.num_computed, min(seq.num_pending, budget)
        first_block, seq.num_sent_blocks = seq.num_sent_blocks, len(seq.block_table)
        samples = num_tokens == seq.num_pending and seq.max_tokens > 0
        seq.num_computed += num_tokens
        seq.num_steps += 1
        seq.num_awaited += samples
        return Chunk(seq.seq_id, start, num_tokens, first_block, seq.block_table[first_block:], samples)

    def _admit(self, seq: Sequence) -> list[tuple[int, int]] | None:
        """Move the first waiting sequence to the running ones, if there are blocks for all its tokens and one to spare
        for each of those, so that it is not preempted soon. Returns the blocks to copy, or None if there is no room."""
        siblings = self._requests[seq.request_id].values()
        copies = self._blocks.admit(
            seq, donor=_donor_of(seq, siblings), use_prefix=not seq.needs_every_state, num_spare=len(self._running)
        )
        if copies is None:
            return None
        if seq.num_cached_tokens is None:
            seq.num_cached_tokens = seq.num_computed if seq.choice == 0 else 0
            if seq.choice == 0 and not seq.needs_every_state:
                self._prefix_query_tokens += seq.prompt_len
                self._prefix_hit_tokens += seq.num_computed
        _remove(self._waiting, seq)
        insort(self._running, seq, key=_rank)
        return copies

    def _has_place_for(self, seq: Sequence) -> bool:
        """Whether a step has room for it, beside all beams of the groups that have begun."""
        num_taken, group = len(self._running), self._groups.get(seq.request_id)
        if group is not None and group.num_running:
            return True
        for other in self._groups.values():
            if other.num_running:
                num_taken += other.num_slots - other.num_running
        return num_taken + (1 if group is None else group.num_slots) <= self._max_num_seqs

    def _preempt_last(self) -> Sequence:
        seq = self._running[-1]
        self._give_back(seq)
        self._num_preemptions += 1
        return seq

    def _give_back(self, seq: Sequence) -> None:
        """Let a sequence that ran wait, without blocks. A beam that waits for those beside it asks for none."""
        self._take_blocks(seq)
        if seq.candidates is None:
            self._wake([seq])

    def _take_blocks(self, seq: Sequence) -> None:
        """Let a running sequence run no longer."""
        _remove(self._running, seq)
        self._blocks.release(seq)
        self._released.append(seq.seq_id)
        self._appended.pop(seq.seq_id, None)

    def _wake(self, sequences: list[Sequence]) -> None:
        """Queue by rank: who was preempted, and a request's later choices, come before requests that arrived later."""
        for seq in sequences:
            insort(self._waiting, seq, key=_rank)

    # ---- beams ----

    def _take_candidates(self, seq: Sequence, candidates: list[Candidate]) -> list[SequenceOutput]:
        """What a beam can go on with. If it is the last of its group to tell, the next beams are chosen."""
        seq.candidates = candidates
        seq.num_awaited -= 1
        self._clear(seq)
        if not seq.block_table:
            _remove(self._waiting, seq)  # preempted meanwhile: for now there is nothing to compute for it
        group = self._groups[seq.request_id]
        if group.undecided:
            return []
        moves = group.advance()
        if group.hopeless:
            return self._fail(seq, NONE_ALLOWED, refused_param=seq.params.grammar_field)
        if group.ended:
            self._end_group(seq.request_id)
        else:
            self._follow(moves, self._requests[seq.request_id])
        return group.outputs()

    def _follow(self, moves: Moves, choices: dict[int, Sequence]) -> None:
        """Let the sequences of a group follow its next beams."""
        for seq in moves.given_up:
            if seq.block_table:
                self._take_blocks(seq)
            del self._live[seq.seq_id], choices[seq.choice]
        for seq, token_id in moves.appended:
            seq.tokens.append(token_id)
            seq.candidates = None
            if seq.block_table:
                self._appended[seq.seq_id] = token_id
            else:
                self._wake([seq])
        for seq, tokens, digests in moves.moved:
            seq.tokens, seq.digests, seq.candidates, seq.num_cached_tokens = tokens, digests, None, 0
            self._live[seq.seq_id] = choices[seq.choice] = seq
            self._wake([seq])

    # ---- the end of a sequence ----

    def _append(self, seq: Sequence, sampled: Sampled) -> SequenceOutput:
        seq.tokens.append(sampled.token_id)
        seq.num_awaited -= 1
        self._clear(seq)
        if sampled.token_id in self._eos_ids and not seq.params.ignore_eos:
            return self._finish(seq, "stop", sampled=sampled)
        if sampled.token_id in seq.params.stop_token_ids:
            return self._finish(seq, "stop", sampled=sampled, stop_reason=sampled.token_id)
        if seq.num_answered >= seq.max_tokens:
            return self._finish(seq, "length", sampled=sampled)
        return self._output(seq, sampled=sampled)

    def _finish(
        self, seq: Sequence, reason: FinishReason, *, sampled: Sampled | None = None, stop_reason: int | None = None
    ) -> SequenceOutput:
        self._end(seq)
        return self._output(seq, sampled=sampled, finish_reason=reason, stop_reason=stop_reason)

    def _fail(self, seq: Sequence, message: str, *, refused_param: str | None = None) -> list[SequenceOutput]:
        """End a sequence with an error, and a beam with its whole group."""
        group, choices = self._groups.get(seq.request_id), [seq.choice]
        if group is None:
            self._end(seq)
        else:
            choices = group.choices
            self._end_group(seq.request_id)
        error = SequenceOutput(
            seq.request_id, seq.choice, [], finish_reason="error", error=message, refused_param=refused_param
        )
        return [replace(error, choice=choice) for choice in choices]

    def _end_group(self, request_id: str) -> None:
        del self._groups[request_id]
        for seq in list(self._requests[request_id].values()):
            self._end(seq)

    def _end(self, seq: Sequence) -> None:
        """Forget a live sequence, wherever it stands. If it was to compute the prompt for others, the next one does."""
        del self._live[seq.seq_id]
        self._clear(seq)
        choices, asleep = self._requests[seq.request_id], self._asleep.get(seq.request_id, [])
        del choices[seq.choice]
        if seq.block_table:
            self._take_blocks(seq)
        elif seq in asleep:
            asleep.remove(seq)
        elif seq.candidates is None:
            _remove(self._waiting, seq)
        if asleep and len(asleep) == len(choices):
            self._wake([asleep.pop(0)])
        if not asleep:
            self._asleep.pop(seq.request_id, None)
        if not choices:
            del self._requests[seq.request_id]

    def _clear(self, seq: Sequence) -> None:
        """A sequence that got a token, or has ended, is suspected of nothing."""
        if seq in self._suspects:
            self._suspects.remove(seq)

    def _output(
        self,
        seq: Sequence,
        *,
        sampled: Sampled | None,
        finish_reason: FinishReason | None = None,
        stop_reason: int | None = None,
    ) -> SequenceOutput:
        prompt_logprobs, seq.prompt_logprobs = seq.prompt_logprobs, None
        return SequenceOutput(
            request_id=seq.request_id,
            choice=seq.choice,
            token_ids=[] if sampled is None else [sampled.token_id],
            logprobs=None if sampled is None or sampled.logprob is None else [sampled.logprob],
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=seq.num_cached_tokens or 0,
            pooled=seq.pooled,
        )


def _as_new(seq: Sequence) -> NewSequence:
    """What a runner that does not know the sequence has to know."""
    return NewSequence(seq.seq_id, seq.tokens.copy(), seq.prompt_len, seq.choice, seq.params, seq.pooling)


def _rank(seq: Sequence) -> tuple[int, int]:
    """Smaller is served first, and keeps its blocks longer."""
    return seq.params.priority, seq.seq_id


def _has_beams(params: SamplingParams) -> bool:
    return params.use_beam_search and params.max_tokens != 0


def _donor_of(seq: Sequence, siblings: Iterable[Sequence]) -> tuple[Sequence, int] | None:
    """Who of its request has stored tokens that `seq` begins with, and how many: all but the last of a beam that goes
    on from another, else the prompt's but for its last."""
    stored = [sibling for sibling in siblings if sibling.prompt_stored]
    num_own = len(seq.tokens) - 1
    for sibling in stored:
        if seq.is_beam and sibling.num_stored >= num_own and sibling.tokens[:num_own] == seq.tokens[:num_own]:
            return sibling, num_own
    return (stored[0], seq.prompt_len - 1) if stored else None


def _remove(sequences: list[Sequence], seq: Sequence) -> None:
    """Take `seq` out of a list that is ordered by rank."""
    index = bisect_left(sequences, _rank(seq), key=_rank)
    assert sequences[index] is seq, f"sequence {seq.seq_id} is not where it should be"
    del sequences[index]
