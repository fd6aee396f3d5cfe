"""One growing list of tokens that serves one choice of a request, as the scheduler sees it.

`tokens` are the prompt and what was sampled after it; the keys and values of the first `num_computed` of them are in
the cache, or will be once the steps that are under way have run. Prompt chunks, prefix hits, forks and recomputation
after a preemption all only move `num_computed`: there is no other phase or flag. While a step that samples for it is
under way, a sequence has one token more than it knows.
"""

from dataclasses import dataclass, field

from polyserve.engine.step import Candidate
from polyserve.pooling import Pooling
from polyserve.request import TokenLogprob
from polyserve.sampling_params import SamplingParams


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    seq_id: int  # smaller is older
    request_id: str
    choice: int
    params: SamplingParams
    tokens: list[int]
    prompt_len: int
    max_tokens: int  # of the answer: what the client asked, cut to what fits
    pooling: Pooling | None = None
    is_beam: bool = False  # its next token is chosen among what all beams of its request could go on with

    # the cache
    num_computed: int = 0
    num_steps: int = 0  # under way that it has a part in
    num_awaited: int = 0  # tokens that those steps sample
    num_stored: int = 0  # tokens that steps which ended have computed: others can begin with these blocks
    block_table: list[int] = field(default_factory=list)
    num_sent_blocks: int = 0  # of the block table: the runner knows these
    num_named_blocks: int = 0
    digests: list[bytes] = field(default_factory=list)  # names of the first full blocks, as far as they were needed

    candidates: list[Candidate] | None = None  # of a beam that waits for the others'

    # what the client hears
    num_cached_tokens: int | None = None  # None until it computes for the first time
    prompt_logprobs: list[TokenLogprob | None] | None = None  # as far as they are known; dropped once they are reported
    pooled: list[float] | None = None

    @property
    def length(self) -> int:
        """Its tokens, those that are awaited included."""
        return len(self.tokens) + self.num_awaited

    @property
    def num_pending(self) -> int:
        """Tokens to give to the next steps. None if the one that is awaited is the last, or the group's to choose."""
        if self.candidates is not None or (self.is_beam and self.num_awaited):
            return 0
        if self.num_awaited and self.num_answered + self.num_awaited >= self.max_tokens:
            return 0
        return self.length - self.num_computed

    @property
    def needs_every_state(self) -> bool:
        """Whether its prompt must pass through the model token by token, and nobody else's blocks help."""
        return self.pooling == "mean"

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of its prompt are wanted and not all known."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_len

    @property
    def prompt_stored(self) -> bool:
        return self.num_stored >= self.prompt_len

    @property
    def num_answered(self) -> int:
        return len(self.tokens) - self.prompt_len
