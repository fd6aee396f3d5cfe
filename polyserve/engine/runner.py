"""Computes steps: keeps what it was told of each sequence, runs the model on a step's tokens, and draws the next ones.

`submit` takes a step and `result` gives its answer, so that the scheduler could work while a device computes; on a CPU
`submit` computes at once. A step changes what is known of sequences before anything is computed: after a fault while
computing, what is known of the sequences outside the step is still right, and the others can be released as usual.
"""

import torch
from torch import Tensor

from polyserve.engine.batch import Batch, KnownSequence, make_batch
from polyserve.engine.cuda_graphs import DecodeGraphs
from polyserve.engine.kv_cache import KVCache
from polyserve.engine.logits import TokenEdits
from polyserve.engine.sampler import NOT_FINITE, Sampler, SampleRow
from polyserve.engine.step import Failed, NewSequence, PromptLogprobs, Sampled, Step, StepResult
from polyserve.model.decoder import Decoder
from polyserve_kernels import ops


class ModelRunner:
    def __init__(self, model: Decoder, cache: KVCache, *, graphs: DecodeGraphs | None = None) -> None:
        """graphs: computes the steps that only decode."""
        self._model = model
        self._cache = cache
        self._sampler = Sampler(model.head_weight, soft_cap=model.config.final_soft_cap)
        self._graphs = graphs
        self._known: dict[int, KnownSequence] = {}
        self._result: StepResult | None = None

    def submit(self, step: Step) -> None:
        assert self._result is None, "the result of the step before was not taken"
        self._learn(step)
        with torch.inference_mode():
            self._copy(step.copies)
            batch = make_batch(step, self._known, self._cache)
            hidden = self._compute(batch)
            prompt_logprobs, failed = self._score_prompts(batch, hidden)
            sampled, failed_too = self._sample(batch, hidden)
        self._result = StepResult(sampled, prompt_logprobs, failed + failed_too)

    def result(self) -> StepResult:
        """The answer to the step that was submitted last."""
        assert self._result is not None, "no step was submitted"
        result, self._result = self._result, None
        return result

    def _compute(self, batch: Batch) -> Tensor:
        """Hidden states [T, C]."""
        if self._graphs is not None and batch.only_decodes:
            return self._graphs.run(batch)
        hidden: Tensor = self._model(batch.token_ids, batch.positions, batch.context)
        return hidden

    def _learn(self, step: Step) -> None:
        for seq_id in step.released:
            self._known.pop(seq_id, None)  # one that failed before it was learned
        for new in step.admitted:
            self._known[new.seq_id] = self._meet(new)
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
            scores_prompt=(
                new.params.prompt_logprobs is not None and new.choice == 0 and len(new.tokens) == new.prompt_len
            ),
            block_table=[],
        )

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

    def _sample(self, batch: Batch, hidden: Tensor) -> tuple[list[Sampled], list[Failed]]:
        """The next token of every chunk that reaches the end of what is known of its sequence."""
        ending = [
            (chunk, last - 1) for chunk, last in zip(batch.chunks, batch.first_rows[1:], strict=True) if chunk.samples
        ]
        sampled: list[Sampled] = []
        failed: list[Failed] = []
        if not ending:
            return sampled, failed
        known = [self._known[chunk.seq_id] for chunk, _ in ending]
        rows = [SampleRow(seq.params, seq.choice, len(seq.tokens), seq.edits) for seq in known]
        drawn = self._sampler.sample(hidden[[row for _, row in ending]], rows)
        for (chunk, _), seq, draw in zip(ending, known, drawn, strict=True):
            if draw.error is not None:
                failed.append(Failed(chunk.seq_id, draw.error))
                continue
            seq.tokens.append(draw.token_id)
            if seq.edits is not None:
                seq.edits.append(draw.token_id)
            sampled.append(Sampled(chunk.seq_id, draw.token_id, draw.logprob))
        return sampled, failed
