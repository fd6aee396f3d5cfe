"""A runner without a model: it keeps on paper what each slot of the KV cache stores, and stops at the first error.

What a slot should store for the token at position p is a number that stands for tokens 0 to p; `ABSENT` is what a
slot stores before anything is written. The next token is a pure function of the tokens before it, the seed and the
choice, so the whole answer to a request is known beforehand (`answer_to`), whatever traffic surrounds it; and so are a
beam's candidates and the answers of beam search (`paper_beams.py`).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from polyserve.engine.block_manager import BlockManager
from polyserve.engine.scheduler import Scheduler
from polyserve.engine.step import Candidate, Candidates, Failed, Pooled, PromptLogprobs, Sampled, Step, StepResult
from polyserve.request import Request, SequenceOutput, TokenLogprob
from polyserve.sampling_params import SamplingParams

ABSENT = -1
EOS = 0
VOCAB_SIZE = 50


def mark(before: int, token_id: int) -> int:
    """The number that stands for a list of tokens, from that of all but the last."""
    return hash((before, token_id))


def next_token(tokens: list[int], seed: int, choice: int) -> int:
    return hash((tuple(tokens[-3:]), len(tokens), seed, choice)) % VOCAB_SIZE


def answer_to(request: Request, choice: int, max_model_len: int) -> list[int]:
    """The answer that a choice of a request gets if nothing ends it early."""
    tokens, params = list(request.prompt_ids), request.params
    room = max_model_len - len(tokens)
    limit = room if params.max_tokens is None else min(room, params.max_tokens)
    answer: list[int] = []
    while len(answer) < limit:
        answer.append(next_token(tokens + answer, params.seed or 0, choice))
        if (answer[-1] == EOS and not params.ignore_eos) or answer[-1] in params.stop_token_ids:
            break
    return answer


def vector_of(prompt_ids: list[int], pooling: str) -> list[float]:
    """What stands for a prompt's embedding."""
    return [float(prompt_ids[-1] if pooling == "last" else sum(prompt_ids)), float(len(prompt_ids))]


def score_of(tokens: list[int], token_id: int, seed: int) -> float:
    """What stands for a token's log-probability. No two totals are equal, but by accident."""
    return -(hash((tuple(tokens[-3:]), len(tokens), seed, token_id)) % 1_000_003) / 250_000


def paper_candidates(tokens: list[int], params: SamplingParams) -> list[Candidate]:
    """As many of the best next tokens as a beam needs."""
    stop_ids = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
    scored = sorted(((score_of(tokens, t, params.seed or 0), t) for t in range(VOCAB_SIZE)), reverse=True)
    best = scored[: params.num_beams + len(stop_ids)]
    return [Candidate(token_id, score, score, None) for score, token_id in best]


def paper_score(tokens: list[int], index: int) -> TokenLogprob:
    """What stands for the log-probability of a prompt's token: a float32 of all tokens up to it."""
    return TokenLogprob(tokens[index], -(hash(tuple(tokens[: index + 1])) % 65536) / 1024)


@dataclass
class Known:
    tokens: list[int]
    prompt_len: int
    params: SamplingParams
    choice: int
    table: list[int]
    pooling: str | None


class PaperRunner:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.slots = [[ABSENT] * block_size for _ in range(num_blocks)]
        self.known: dict[int, Known] = {}
        self.num_holders: Counter[int] = Counter()  # of each block: the sequences that have it in their table
        self.num_computed_tokens = 0
        self.num_copies = 0

    def run(self, step: Step, failing: frozenset[int] = frozenset()) -> StepResult:
        """Compute a step that was learned; the sequences `failing` get no token."""
        self._copy(step)
        sampled, scored, pooled, candidates = [], [], [], []
        for chunk in step.chunks:
            seq = self.known[chunk.seq_id]
            self._compute(seq, chunk.start, chunk.num_tokens, chunk.seq_id)
            assert chunk.samples == (chunk.start + chunk.num_tokens == len(seq.tokens) and seq.params.max_tokens != 0)
            if seq.params.prompt_logprobs is not None and seq.choice == 0:
                end = min(chunk.start + chunk.num_tokens + 1, seq.prompt_len)
                entries = [paper_score(seq.tokens, i) for i in range(chunk.start + 1, end)]
                if entries:
                    scored.append(PromptLogprobs(chunk.seq_id, chunk.start + 1, entries))
            if seq.pooling is not None and chunk.start + chunk.num_tokens == seq.prompt_len:
                pooled.append(Pooled(chunk.seq_id, vector_of(seq.tokens, seq.pooling)))
            if chunk.samples and seq.params.use_beam_search:
                if chunk.seq_id not in failing:
                    candidates.append(Candidates(chunk.seq_id, paper_candidates(seq.tokens, seq.params)))
            elif chunk.samples:
                token_id = next_token(seq.tokens, seq.params.seed or 0, seq.choice)
                seq.tokens.append(
                    token_id
                )  # also of one that fails: the next step may be under way before that is told
                if chunk.seq_id not in failing:
                    sampled.append(Sampled(chunk.seq_id, token_id, None))
        in_step = {chunk.seq_id for chunk in step.chunks}
        failed = [Failed(seq_id, "told to fail") for seq_id in sorted(failing & in_step)]
        return StepResult(sampled, scored, failed, pooled, candidates)

    def learn(self, step: Step) -> None:
        for seq_id in step.released:
            del self.known[seq_id]  # what is released must be known
        for new in step.admitted:
            assert new.seq_id not in self.known, f"sequence {new.seq_id} is admitted twice"
            self.known[new.seq_id] = Known(list(new.tokens), new.prompt_len, new.params, new.choice, [], new.pooling)
        for seq_id, token_id in step.appended.items():
            self.known[seq_id].tokens.append(token_id)
        for chunk in step.chunks:
            table = self.known[chunk.seq_id].table
            assert chunk.first_block == len(table), "a block that was told already is told again"
            table += chunk.blocks
        self.num_holders = Counter(block for seq in self.known.values() for block in seq.table)

    def _copy(self, step: Step) -> None:
        sources, destinations = [s for s, _ in step.copies], [d for _, d in step.copies]
        assert len(set(destinations)) == len(destinations)
        assert not set(sources) & set(destinations)
        for source, destination in step.copies:
            assert self.num_holders[destination] == 1, f"block {destination} is overwritten while it is shared"
            assert self.num_holders[source] >= 1, f"block {source} is copied though nobody holds it"
            self.slots[destination] = list(self.slots[source])
        self.num_copies += len(step.copies)

    def _compute(self, seq: Known, start: int, num_tokens: int, seq_id: int) -> None:
        assert num_tokens > 0
        assert start + num_tokens <= len(seq.tokens)
        expected = 0
        for position, token_id in enumerate(seq.tokens[: start + num_tokens]):
            expected = mark(expected, token_id)
            block, offset = seq.table[position // self.block_size], position % self.block_size
            if position < start:
                stored = self.slots[block][offset]
                assert stored == expected, f"sequence {seq_id} would read something else at position {position}"
            else:
                assert self.num_holders[block] == 1, f"sequence {seq_id} writes into block {block}, which is shared"
                self.slots[block][offset] = expected
        self.num_computed_tokens += num_tokens


class PaperEngine:
    """The real scheduler and block manager with a paper runner, and what was put out, by (request id, choice).

    With `overlaps`, a step's answer is told after the next step was scheduled, as on a device that computes meanwhile.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 32,
        max_model_len: int = 64,
        enable_prefix_caching: bool = True,
        overlaps: bool = False,
    ) -> None:
        self.max_model_len = max_model_len
        self.blocks = BlockManager(
            num_blocks=num_blocks, block_size=block_size, enable_prefix_caching=enable_prefix_caching
        )
        self.scheduler = Scheduler(
            self.blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            eos_ids=[EOS],
        )
        self.runner = PaperRunner(num_blocks, block_size)
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.last: dict[tuple[str, int], SequenceOutput] = {}
        self.prompt_logprobs: dict[str, list[TokenLogprob | None]] = {}
        self.overlaps = overlaps
        self.under_way: tuple[Step, StepResult] | None = None

    def step(
        self,
        failing: frozenset[int] = frozenset(),
        meanwhile: Callable[[], None] | None = None,
        max_tokens: int | None = None,
    ) -> Step:
        """One step; `meanwhile` is called while it is computed."""
        step = self.begin(max_tokens)
        result = self.runner.run(step, failing)
        if meanwhile is not None:
            meanwhile()
        self.finish()
        if step.chunks:
            self.under_way = step, result
        if not self.overlaps:
            self.finish()
        return step

    def finish(self) -> None:
        """Tell the scheduler the answer to the step that is under way, if there is one."""
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            self.take(self.scheduler.update(*under_way))

    def begin(self, max_tokens: int | None = None) -> Step:
        """Schedule a step, tell the runner, and count: a block's holders are the sequences that have it."""
        step = self.scheduler.schedule(max_tokens)
        if not step.chunks:
            return step  # the runner is not told of it
        self.runner.learn(step)
        pool, held = self.blocks.pool, self.runner.num_holders
        assert all(pool.num_holders(block) == held[block] for block in range(pool.num_blocks))
        assert pool.num_free == pool.num_blocks - len(held)
        return step

    def fail_step(self) -> None:
        """One step that cannot be computed."""
        step = self.begin()
        self.finish()
        self.take(self.scheduler.fail(step, "told to fail"))

    def take(self, outputs: list[SequenceOutput]) -> None:
        for output in outputs:
            key = (output.request_id, output.choice)
            assert self.last.get(key) is None or self.last[key].finish_reason is None, f"{key} goes on after its end"
            self.tokens.setdefault(key, []).extend(output.token_ids)
            if output.prompt_logprobs is not None:
                assert output.request_id not in self.prompt_logprobs, "a prompt's log-probabilities are told twice"
                self.prompt_logprobs[output.request_id] = output.prompt_logprobs
            self.last[key] = output

    def drain(self, max_steps: int = 10_000) -> None:
        """Step until nothing is live."""
        for _ in range(max_steps):
            if not self.scheduler.has_work and self.under_way is None:
                return
            self.step()
        raise AssertionError(f"work is left after {max_steps} steps: {self.scheduler.stats}")


def a_request(
    request_id: str, prompt_ids: list[int], *, seed: int = 7, ignore_eos: bool = True, **params: object
) -> Request:
    return Request(request_id, prompt_ids, SamplingParams(seed=seed, ignore_eos=ignore_eos, **params))
