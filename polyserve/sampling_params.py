"""How one request wants its tokens chosen: one frozen value, checked once, the same for HTTP, gRPC, Python and the engine.

Order, for one token   logits -> repetition penalty -> frequency and presence penalties -> logit_bias -> allowed tokens, min_tokens
                       -> temperature -> top-k -> top-p -> min-p -> typical-p -> draw
Log-probabilities that are reported are the model's own: before any of these.
"""

import math
from dataclasses import dataclass, field

from polyserve.errors import InvalidRequest

MAX_SEED = 2**63 - 1
MAX_CHOICES = 128
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Every field has an effect. Raises InvalidRequest, naming the field, if a value is out of range."""

    n: int = 1  # choices for one prompt; choice i uses the random numbers (seed, i, position)
    max_tokens: int | None = 16  # None: as many as the model's length allows
    min_tokens: int = 0  # stop tokens are impossible before this many, and stop strings are not looked for
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 or -1: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0  # over prompt and answer
    frequency_penalty: float = 0.0  # over the answer
    presence_penalty: float = 0.0  # over the answer
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: list[int] | None = None
    seed: int | None = None  # None: drawn when the request is admitted, and kept with it
    stop: list[str] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; k: the chosen token's and the k most likely ones'
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        _between("n", self.n, 1, MAX_CHOICES)
        if self.max_tokens is not None:
            _between("max_tokens", self.max_tokens, 0, math.inf)
        _between("min_tokens", self.min_tokens, 0, math.inf)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}", param="min_tokens")
        _between("temperature", self.temperature, 0.0, 100.0)
        _between("top_k", self.top_k, -1, math.inf)
        _between("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("typical_p", self.typical_p, 0.0, 1.0, open_low=True)
        _between("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        for bias in self.logit_bias.values():
            _between("logit_bias", bias, -100.0, 100.0)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequest("allowed_token_ids must name at least one token, got an empty list", param="allowed_token_ids")
        if self.seed is not None:
            _between("seed", self.seed, -MAX_SEED - 1, MAX_SEED)
        if len(self.stop) > MAX_STOPS:
            raise InvalidRequest(f"stop takes at most {MAX_STOPS} strings, got {len(self.stop)}", param="stop")
        for stop in self.stop:
            if not 0 < len(stop) <= MAX_STOP_CHARACTERS:
                raise InvalidRequest(f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters, got {len(stop)}", param="stop")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _between(name, getattr(self, name), 0, math.inf)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def check_against(self, *, vocab_size: int, max_logprobs: int) -> None:
        """Raise InvalidRequest if a token id anywhere is outside the vocabulary, or more log-probabilities are asked for than allowed."""
        named = (("logit_bias", self.logit_bias), ("allowed_token_ids", self.allowed_token_ids or ()), ("stop_token_ids", self.stop_token_ids))
        for name, ids in named:
            for token_id in ids:
                if not 0 <= token_id < vocab_size:
                    raise InvalidRequest(f"{name} holds token id {token_id}; this model's ids are 0 to {vocab_size - 1}", param=name)
        for name in ("logprobs", "prompt_logprobs"):
            wanted = getattr(self, name)
            if wanted is not None and wanted > max_logprobs:
                raise InvalidRequest(f"{name} must be at most {max_logprobs}, got {wanted}", param=name)


def _between(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a value that is not a number or lies outside [low, high] (outside (low, high] with `open_low`)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name} must be a number, got {value!r}", param=name)
    if not (low < value if open_low else low <= value) or not value <= high:  # written so that nan is refused
        at_least = "more than" if open_low else "at least"
        limit = f"{at_least} {low:g}" if high == math.inf else f"{at_least} {low:g} and at most {high:g}"
        raise InvalidRequest(f"{name} must be {limit}, got {value}", param=name)
