"""Computes steps: keeps what it was told of each sequence, runs the model on a step's tokens, and draws the next ones.

`submit` launches a step and `result` gives its answer, so that the next step can be scheduled and launched while a
device computes: a token that is not known yet goes from one step to the next on the device. On a CPU `submit` computes
at once. A step changes what is known of sequences before anything is computed: after a fault while computing, what is
known of the sequences outside the step is still right, and the others can be released as usual.
"""

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from polyserve.engine.batch import Batch, KnownSequence, make_batch
from polyserve.engine.cuda_graphs import DecodeGraphs
from polyserve.engine.grammar import Grammars, GrammarState
from polyserve.engine.kv_cache import KVCache
from polyserve.engine.logits import TokenEdits
from polyserve.engine.pooler import Pooler
from polyserve.engine.sampler import NOT_FINITE, Draft, Sampler, SampleRow
from polyserve.engine.step import (
    NONE_ALLOWED,
    Candidates,
    Failed,
    NewSequence,
    Pooled,
    PromptLogprobs,
    Sampled,
    Step,
    StepResult,
)
from polyserve.model.decoder import Decoder
from polyserve.model.parts import parts_of
from polyserve.sampling_params import SamplingParams
from polyserve_kernels import ops


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step whose launches were made, and what it will bring."""

    step: Step
    ending: list[int]  # the sequences that get a token, in the order of the draft's rows
    draft: Draft | None  # None if there are none
    prompt_logprobs: list[PromptLogprobs]
    pooled: list[Pooled]
    failed: list[Failed]


@dataclass(frozen=True, slots=True)
class _Masks:
    """Masks that are being computed, and the sequences they are for."""

    states: dict[int, GrammarState]
    done: "Future[None]"


class ModelRunner:
    def __init__(
        self, model: Decoder, cache: KVCache, *, graphs: DecodeGraphs | None = None, grammars: Grammars | None = None
    ) -> None:
        """graphs: computes the steps that only decode. Others are one call where the backend has one for a decoder.

        grammars: has compiled those of all sequences that come."""
        self._model = model
        self._cache = cache
        self._sampler = Sampler(model.head_weight, soft_cap=model.config.final_soft_cap)
        self._graphs = graphs
        self._grammars = grammars
        self._whole_step = ops.decoder_step(parts_of(model), cache.layers)
        self._known: dict[int, KnownSequence] = {}
        self._under_way: deque[_UnderWay] = deque()

    def submit(self, step: Step) -> None:
        """Launch a step. It may come while the one before is under way, if that is `settled`."""
        self._learn(step)
        with torch.inference_mode():
            self._copy(step.copies)
            batch = make_batch(step, self._known, self._cache)
            self._fill_in_awaited(batch)
            masks = self._begin_masks(batch)
            hidden = self._compute(batch)
            prompt_logprobs, failed = self._score_prompts(batch, hidden)
            failed += self._take_masks(masks)
            pooled, not_pooled = self._pool(batch, hidden)
            failed += not_pooled
            ending, draft = self._sample(batch, hidden, {failure.seq_id for failure in failed})
        self._under_way.append(_UnderWay(step, ending, draft, prompt_logprobs, pooled, failed))

    @property
    def settled(self) -> bool:
        """Whether the next tokens of all steps under way are on the device, for the next step to go on from."""
        return all(x.draft is None or x.draft.settled for x in self._under_way)

    def result(self) -> StepResult:
        """The answer to the oldest step whose answer was not taken yet."""
        assert self._under_way, "no step was submitted"
        oldest = self._under_way.popleft()
        sampled: list[Sampled] = []
        candidates: list[Candidates] = []
        failed = list(oldest.failed)
        drawn = [] if oldest.draft is None else self._sampler.finish(oldest.draft)
        for seq_id, draw in zip(oldest.ending, drawn, strict=True):
            seq = self._known.get(seq_id)
            if draw.error is not None:
                at_fault = None if seq is None or draw.error != NONE_ALLOWED else seq.params.grammar_field
                failed.append(Failed(seq_id, draw.error, at_fault))
                continue
            if draw.candidates is not None:
                candidates.append(Candidates(seq_id, draw.candidates))
                continue
            if seq is not None:  # None if it ended meanwhile
                seq.append(draw.token_id)
            sampled.append(Sampled(seq_id, draw.token_id, draw.logprob))
        return StepResult(sampled, oldest.prompt_logprobs, failed, oldest.pooled, candidates)

    def _fill_in_awaited(self, batch: Batch) -> None:
        """Put the tokens that the step before samples into the rows that await them, on the device."""
        if not batch.awaiting:
            return
        before = self._under_way[-1]
        assert before.draft is not None
        place = {seq_id: row for row, seq_id in enumerate(before.ending)}
        rows = torch.tensor([(row, place[seq_id]) for seq_id, row in batch.awaiting]).to(self._cache.device)
        batch.token_ids[rows[:, 0]] = before.draft.token_ids[rows[:, 1]]

    def _compute(self, batch: Batch) -> Tensor:
        """Hidden states [T, C]."""
        if self._graphs is not None and batch.only_decodes:
            return self._graphs.run(batch)
        if self._whole_step is not None:
            x = batch.context
            return self._whole_step(
                batch.token_ids, batch.positions, x.slot_mapping, x.block_tables, x.seq_lens, x.cu_seqlens_q
            )
        hidden: Tensor = self._model(batch.token_ids, batch.positions, batch.context)
        return hidden

    def _learn(self, step: Step) -> None:
        for seq_id in step.released:
            self._known.pop(seq_id, None)  # one that failed before it was learned
        for new in step.admitted:
            self._known[new.seq_id] = self._meet(new)
        for seq_id, token_id in step.appended.items():
            self._known[seq_id].append(token_id)
        for chunk in step.chunks:
            self._known[chunk.seq_id].block_table[chunk.first_block :] = chunk.blocks

    def _meet(self, new: NewSequence) -> KnownSequence:
        edits = None
        if TokenEdits.needed_by(new.params):
            config = self._model.config
            edits = TokenEdits(
                new.params, new.tokens, new.prompt_len, eos_ids=config.eos_ids, vocab_size=len(self._model.head_weight)
            )
        return KnownSequence(
            tokens=new.tokens.copy(),
            prompt_len=new.prompt_len,
            choice=new.choice,
            params=new.params,
            edits=edits,
            grammar=None if self._grammars is None else self._grammars.state(new.params, new.tokens[new.prompt_len :]),
            scores_prompt=(
                new.params.prompt_logprobs is not None and new.choice == 0 and len(new.tokens) == new.prompt_len
            ),
            num_candidates=self._num_candidates(new.params),
            pooler=None if new.pooling is None else Pooler(new.pooling),
            block_table=[],
        )

    def _num_candidates(self, params: SamplingParams) -> int:
        """So many that, whichever of them end an answer, one for each beam goes on."""
        if not params.use_beam_search:
            return 0
        stop_ids = {*params.stop_token_ids, *(() if params.ignore_eos else self._model.config.eos_ids)}
        return params.num_beams + len(stop_ids)

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        if copies:
            pairs = torch.tensor(copies, device=self._cache.device)
            for layer in self._cache.layers:
                ops.copy_blocks(layer, pairs)

    def _score_prompts(self, batch: Batch, hidden: Tensor) -> tuple[list[PromptLogprobs], list[Failed]]:
        """Log-probabilities of the prompt tokens that come right after one of this step."""
        scored, failed = [], []
        for chunk, first_row in zip(batch.chunks, batch.first_rows[:-1], strict=True):
            seq = self._known[chunk.seq_id]
            start, end = chunk.start + 1, min(chunk.start + chunk.num_tokens + 1, seq.prompt_len)
            if seq.params.prompt_logprobs is None or not seq.scores_prompt or start >= end:
                continue
            states = hidden[first_row : first_row + end - start]
            entries = self._sampler.score(states, seq.tokens[start:end], num_top=seq.params.prompt_logprobs)
            if entries is None:
                failed.append(Failed(chunk.seq_id, NOT_FINITE))
            else:
                scored.append(PromptLogprobs(chunk.seq_id, start, entries))
        return scored, failed

    def _pool(self, batch: Batch, hidden: Tensor) -> tuple[list[Pooled], list[Failed]]:
        """Take in the states of prompts that become vectors; those that end in this step are done."""
        pooled, failed = [], []
        for chunk, first_row in zip(batch.chunks, batch.first_rows[:-1], strict=True):
            seq = self._known[chunk.seq_id]
            if seq.pooler is None:
                continue
            seq.pooler.push(hidden[first_row : first_row + chunk.num_tokens])
            if chunk.start + chunk.num_tokens == seq.prompt_len:
                values = seq.pooler.result()
                if values is None:
                    failed.append(Failed(chunk.seq_id, NOT_FINITE))
                else:
                    pooled.append(Pooled(chunk.seq_id, values))
        return pooled, failed

    def _begin_masks(self, batch: Batch) -> "_Masks | None":
        """Let the grammars of sequences that get a token compute their masks beside the model."""
        following = {
            chunk.seq_id: seq.grammar
            for chunk in batch.chunks
            if chunk.samples and (seq := self._known[chunk.seq_id]).grammar is not None
        }
        if not following or self._grammars is None:
            return None
        return _Masks(following, self._grammars.fill(list(following.values())))

    def _take_masks(self, masks: "_Masks | None") -> list[Failed]:
        """Wait for the masks and let the next tokens follow them. Returns the sequences whose grammar gave up."""
        failed = []
        if masks is not None:
            masks.done.result()
            for seq_id, state in masks.states.items():
                seq, error = self._known[seq_id], state.error
                if error is not None:
                    message = f"{seq.params.grammar_field} needs too much work at this token: {error}"
                    failed.append(Failed(seq_id, message, seq.params.grammar_field))
                elif seq.edits is not None:
                    seq.edits.restrict(state.mask)
        return failed

    def _sample(self, batch: Batch, hidden: Tensor, failed: set[int]) -> tuple[list[int], Draft | None]:
        """Begin to draw the next token of every chunk that reaches the end of its sequence."""
        ending = [
            (chunk, last - 1)
            for chunk, last in zip(batch.chunks, batch.first_rows[1:], strict=True)
            if chunk.samples and chunk.seq_id not in failed
        ]
        if not ending:
            return [], None
        rows: list[SampleRow] = []
        for chunk, _ in ending:
            seq = self._known[chunk.seq_id]
            position = chunk.start + chunk.num_tokens
            rows.append(SampleRow(seq.params, seq.choice, position, seq.edits, seq.num_candidates))
        if len(rows) < len(hidden):
            hidden = hidden.index_select(0, torch.tensor([row for _, row in ending], device=hidden.device))
        return [chunk.seq_id for chunk, _ in ending], self._sampler.begin(hidden, rows)
