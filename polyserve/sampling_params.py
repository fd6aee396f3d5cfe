"""How one request wants its tokens chosen: one frozen value, checked once, the same for HTTP, gRPC, Python and engine.

Order, for one token   logits -> repetition penalty -> frequency and presence penalties -> logit_bias -> allowed tokens,
                       grammar, min_tokens -> temperature -> top-k -> top-p -> min-p -> typical-p -> draw
Log-probabilities that are reported are the model's own: before any of these.
"""

from dataclasses import dataclass, replace
from typing import Literal

from polyserve.config import option
from polyserve.errors import InvalidRequest

MAX_SEED = 2**63 - 1
MAX_COUNT = 2**31 - 1  # of tokens, or a rank among them
MAX_CHOICES = 128
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
GRAMMAR_FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
JSON_SPACE = " |\n[ \t]{0,32}"  # what may stand between two words of JSON, as an expression
MAX_SALT_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a field takes: `low` to `high`, both included but for `low` with `open_low`."""

    low: float
    high: float
    open_low: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int)

    def __str__(self) -> str:
        at_least = "more than" if self.open_low else "at least"
        spelling = "d" if self.whole else "g"
        return f"{at_least} {self.low:{spelling}} and at most {self.high:{spelling}}"

    def check(self, name: str, value: object) -> None:
        """Raise InvalidRequest, naming the field, for what is no number or lies outside."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest(f"{name} must be a {'whole ' * self.whole}number, got {value!r}", param=name)
        if self.whole and not isinstance(value, int):
            raise InvalidRequest(f"{name} must be a whole number, got {value!r}", param=name)
        above = self.low < value if self.open_low else self.low <= value
        if not above or not value <= self.high:  # written so that nan is refused
            raise InvalidRequest(f"{name} must be {self}, got {value}", param=name)


RANGES = {  # None, where a field allows it, lies in every range
    "n": Range(1, MAX_CHOICES),
    "best_of": Range(1, MAX_CHOICES),
    "length_penalty": Range(-10.0, 10.0),
    "max_tokens": Range(0, MAX_COUNT),
    "min_tokens": Range(0, MAX_COUNT),
    "temperature": Range(0.0, 100.0),
    "top_k": Range(-1, MAX_COUNT),
    "top_p": Range(0.0, 1.0, open_low=True),
    "min_p": Range(0.0, 1.0),
    "typical_p": Range(0.0, 1.0, open_low=True),
    "repetition_penalty": Range(0.0, 100.0, open_low=True),
    "frequency_penalty": Range(-2.0, 2.0),
    "presence_penalty": Range(-2.0, 2.0),
    "seed": Range(-MAX_SEED - 1, MAX_SEED),
    "logprobs": Range(0, MAX_COUNT),
    "prompt_logprobs": Range(0, MAX_COUNT),
    "priority": Range(-MAX_COUNT, MAX_COUNT),
}
BIAS = Range(-100.0, 100.0)  # of logit_bias


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Every field has an effect. Raises InvalidRequest, naming the field, if a value is out of range."""

    n: int = option(1, "choices for one prompt; choice i uses the random numbers (seed, i, position)")
    best_of: int | None = option(
        None, "find this many answers and give the n best, by mean log-probability of a token; default: n"
    )
    use_beam_search: bool = option(False, "search for the likeliest answers with best_of beams, without random numbers")
    length_penalty: float = option(
        1.0, "beam search ranks answers by log-probability / length ** this: above 0 it favours long ones"
    )
    early_stopping: bool | Literal["never"] = option(
        False,
        "when beam search ends: true: with the first best_of answers; false: when the best beam is worse than they are "
        "at its present length; never: when it will be at any length",
    )
    max_tokens: int | None = option(16, "most tokens of an answer; none: as many as the model's length allows")
    min_tokens: int = option(0, "stop tokens are impossible before this many, and stop strings are not looked for")
    temperature: float = option(1.0, "0 is greedy")
    top_k: int = option(0, "keep this many of the likeliest tokens; 0 or -1: no limit")
    top_p: float = option(1.0, "keep the likeliest tokens that together have this probability")
    min_p: float = option(0.0, "drop tokens less likely than this share of the likeliest one's probability")
    typical_p: float = option(1.0, "keep the tokens nearest the expected surprise that together have this probability")
    repetition_penalty: float = option(1.0, "over prompt and answer")
    frequency_penalty: float = option(0.0, "over the answer, for each time a token came")
    presence_penalty: float = option(0.0, "over the answer, once for a token that came")
    logit_bias: dict[int, float] = option({}, "added to the logits of these token ids")
    allowed_token_ids: list[int] | None = option(None, "nothing but these token ids")
    seed: int | None = option(
        None, "of the random numbers; a missing one is drawn when the request is admitted, and kept with it"
    )
    stop: list[str] = option([], "strings that end the answer")
    include_stop_str_in_output: bool = option(False, "leave the stop string in the text")
    stop_token_ids: list[int] = option([], "token ids that end the answer, besides the model's own end of sequence")
    ignore_eos: bool = option(False, "go on after the model's end of sequence")
    logprobs: int | None = option(
        None, "log-probabilities of each token and of this many of the likeliest; default: none"
    )
    prompt_logprobs: int | None = option(None, "the same for the tokens of the prompt; default: none")
    skip_special_tokens: bool = option(True, "leave special tokens out of the text")
    priority: int = option(0, "whoever has the lower one is served first; blocks of the KV cache are kept by the lower")
    guided_json: str | None = option(None, "a JSON schema, as JSON: the answer is a value that it allows")
    guided_regex: str | None = option(
        None, "the whole answer matches this regular expression (`\\w` is of every script)"
    )
    guided_choice: list[str] | None = option(None, "the answer is one of these strings")
    guided_grammar: str | None = option(None, "the answer is a sentence of this grammar, in Lark's or llama.cpp's EBNF")
    cache_salt: str | None = option(
        None, "share cached keys and values of the prompt only with requests that have the same salt"
    )

    def __post_init__(self) -> None:
        for name, limit in RANGES.items():
            if getattr(self, name) is not None:
                limit.check(name, getattr(self, name))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}", param="min_tokens"
            )
        for bias in self.logit_bias.values():
            BIAS.check("logit_bias", bias)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequest(
                "allowed_token_ids must name at least one token, got an empty list", param="allowed_token_ids"
            )
        _check_stops(self.stop)
        self._check_grammar()
        if self.cache_salt is not None:
            _check_salt(self.cache_salt)
        if self.best_of is not None and self.best_of < self.n:
            raise InvalidRequest(f"best_of must be at least n ({self.n}), got {self.best_of}", param="best_of")
        self._check_beam_search()

    def _check_beam_search(self) -> None:
        """Refuse what has no effect: parameters of the search without it, and of random choice with it."""
        stopping = self.early_stopping
        if not isinstance(stopping, bool) and stopping != "never":
            raise InvalidRequest(
                f"early_stopping must be true, false or 'never', got {stopping!r:.60}", param="early_stopping"
            )
        if not isinstance(self.use_beam_search, bool):
            raise InvalidRequest(
                f"use_beam_search must be true or false, got {self.use_beam_search!r:.60}", param="use_beam_search"
            )
        if not self.use_beam_search:
            for name, default in (("length_penalty", 1.0), ("early_stopping", False)):
                if getattr(self, name) != default:
                    raise InvalidRequest(f"{name} needs use_beam_search", param=name)
            return
        if self.temperature not in (0.0, 1.0):
            raise InvalidRequest(
                f"temperature must be 0 or 1 with use_beam_search, which draws nothing, got {self.temperature}",
                param="temperature",
            )
        for name, harmless in (("top_k", (0, -1)), ("top_p", (1.0,)), ("min_p", (0.0,)), ("typical_p", (1.0,))):
            if getattr(self, name) not in harmless:
                message = f"{name} cannot go with use_beam_search, which draws nothing, got {getattr(self, name)}"
                raise InvalidRequest(message, param=name)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.use_beam_search

    @property
    def drawn(self) -> "SamplingParams":
        """What the engine is asked where n answers are picked among best_of: all of them, with log-probabilities."""
        if self.use_beam_search or self.num_beams == self.n:
            return self
        return replace(self, n=self.num_beams, best_of=None, logprobs=self.logprobs or 0)

    @property
    def num_beams(self) -> int:
        """Answers that are looked for: those of beam search, or those of which the n best are given."""
        return self.best_of or self.n

    @property
    def grammar_field(self) -> str | None:
        """The field that says which texts the answer may be; None if it may be any."""
        return next((name for name in GRAMMAR_FIELDS if getattr(self, name) is not None), None)

    @property
    def grammar_bytes(self) -> int:
        """How long the grammar is."""
        return 0 if self.grammar_field is None else _num_bytes(getattr(self, self.grammar_field))

    def check_against(self, *, vocab_size: int, max_logprobs: int) -> None:
        """Raise InvalidRequest if a token id is outside the vocabulary, or too many log-probabilities are asked for."""
        named = (
            ("logit_bias", self.logit_bias),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("stop_token_ids", self.stop_token_ids),
        )
        for name, ids in named:
            for token_id in ids:
                if not 0 <= token_id < vocab_size:
                    raise InvalidRequest(
                        f"{name} holds token id {token_id}; this model's ids are 0 to {vocab_size - 1}", param=name
                    )
        for name in ("logprobs", "prompt_logprobs"):
            wanted = getattr(self, name)
            if wanted is not None and wanted > max_logprobs:
                raise InvalidRequest(f"{name} must be at most {max_logprobs}, got {wanted}", param=name)

    def _check_grammar(self) -> None:
        """Whether its text makes a grammar shows when it is compiled."""
        given = [name for name in GRAMMAR_FIELDS if getattr(self, name) is not None]
        if not given:
            return
        name = given[0]
        if len(given) > 1:
            raise InvalidRequest(f"{given[1]} cannot go with {name}: an answer follows one grammar", param=given[1])
        parts = getattr(self, name)
        if name == "guided_choice":
            if isinstance(parts, str) or not parts or not all(isinstance(choice, str) for choice in parts):
                raise InvalidRequest("guided_choice must be a list of one string or more", param=name)
        elif not isinstance(parts, str):
            raise InvalidRequest(f"{name} must be a string, got {type(parts).__name__}", param=name)
        try:
            _num_bytes(parts)
        except UnicodeEncodeError as error:
            message = f"{name} holds half of a surrogate pair, which no text can contain"
            raise InvalidRequest(message, param=name) from error
        for other in ("ignore_eos", "min_tokens"):
            if getattr(self, other):
                message = f"{other} cannot go with {name}: the grammar decides where the answer ends"
                raise InvalidRequest(message, param=other)


def _num_bytes(parts: str | list[str]) -> int:
    return sum(len(part.encode()) for part in ([parts] if isinstance(parts, str) else parts))


def _check_stops(stops: list[str]) -> None:
    if isinstance(stops, str) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidRequest(f"stop must be a list of strings, got {stops!r}", param="stop")
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"stop takes at most {MAX_STOPS} strings, got {len(stops)}", param="stop")
    for stop in stops:
        if not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            message = f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters, got {len(stop)}"
            raise InvalidRequest(message, param="stop")
        _check_text("stop", stop)


def _check_text(name: str, text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{name} holds half of a surrogate pair, which no text can contain", param=name)


def _check_salt(salt: str) -> None:
    if not isinstance(salt, str) or not 0 < len(salt) <= MAX_SALT_CHARACTERS:
        message = f"cache_salt must be a string of 1 to {MAX_SALT_CHARACTERS} characters, got {salt!r:.60}"
        raise InvalidRequest(message, param="cache_salt")
    _check_text("cache_salt", salt)
