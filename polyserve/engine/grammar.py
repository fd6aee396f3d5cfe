"""Grammars: which tokens may come next, so that an answer is a value of a JSON schema, matches an expression and so on.

    SamplingParams -> Lark -> matcher, compiled once in a thread -> GrammarState of a sequence -> a bit for each token

A state is a pure function of the grammar and the answer's tokens: a sequence that begins again after a preemption, or
in another process, feeds them in. Any tokenisation of an allowed text is allowed: the model chooses it, and nothing
here needs a tokenizer. Where the answer may end, the model's end of sequence is allowed; where it must, nothing else.

JSON     follows Draft 2020-12 as llguidance reads it; between two of its words a space, or a new line and its indent,
         so that a model cannot write white space for ever; `x-guidance` in a schema changes this
Regex    Rust's syntax (https://docs.rs/regex), over Unicode, but that \\d is 0 to 9
Limits   on the work of compiling and of each step, in llguidance's units; beyond them the request is refused
Source   https://github.com/guidance-ai/llguidance
"""

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from polyserve.errors import InvalidRequest
from polyserve.request import Vocabulary
from polyserve.sampling_params import GRAMMAR_FIELDS, JSON_SPACE, SamplingParams

MAX_VOCAB_SIZE = 2**19
MAX_CACHED = 64  # compiled grammars
MAX_MULTIPLE_OF = 10_000  # of an integer: one state a remainder
MAX_SHOWN = 300  # characters of what llguidance says

_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
_LIMITS = LLParserLimits(
    # of one step, which the whole batch waits for: together some 20 ms at worst, with 262,144 tokens
    step_lexer_fuel=100_000,
    step_max_items=2_000,
    max_lexer_states=10_000,  # 2 kB each, of every sequence
    precompute_large_lexemes=False,  # by and by as tokens need them, under the limits of a step
    verbose_errors=False,
)


class GrammarState:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, num_words: int) -> None:
        self._matcher = matcher
        self.mask = np.zeros(num_words, dtype=np.int32)  # bit v % 32 of word v // 32: token v may come next

    def advance(self, token_ids: Sequence[int]) -> None:
        """Take in tokens of the answer; each was allowed by the state before it."""
        for token_id in token_ids:
            self._matcher.consume_token(token_id)

    def fork(self) -> "GrammarState":
        """A state of its own from here on, as a beam needs it."""
        return GrammarState(self._matcher.deep_copy(), len(self.mask))

    @property
    def error(self) -> str | None:
        """Why this grammar cannot be followed any further."""
        return _said(self._matcher.get_error()) if self._matcher.is_error() else None


class Grammars:
    """The grammars of one engine: compiled, kept, and asked for masks while the model computes."""

    def __init__(
        self, load_vocabulary: Callable[[], Vocabulary] | None, *, vocab_size: int, eos_ids: Collection[int]
    ) -> None:
        """load_vocabulary: called once, in a thread, when the first grammar comes or at `warm_up`."""
        self._load_vocabulary = load_vocabulary
        self._vocab_size = vocab_size
        self._eos_ids = list(eos_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()  # the one used last is the last
        self._compiling = ThreadPoolExecutor(1, "grammar", initializer=_step_back)
        self._masking = ThreadPoolExecutor(1, "mask")
        self._executor = LLExecutor(max(1, len(os.sched_getaffinity(0)) // 2))

    def warm_up(self) -> None:
        """Load the vocabulary ahead of the first grammar: that holds the interpreter's lock for up to a second."""
        if self._load_vocabulary is not None and self._eos_ids:
            self._compiling.submit(self._vocabulary)

    def compile(self, params: SamplingParams) -> "Future[None]":
        """Compile what `params` ask for, in a thread. The future raises InvalidRequest if it is no grammar."""
        return self._compiling.submit(self._compile, params)

    def state(self, params: SamplingParams, answer: Sequence[int]) -> GrammarState | None:
        """The state after the tokens of an answer; None without a grammar. One that is not kept is compiled again."""
        if params.grammar_field is None:
            return None
        kept = self._compiled.get(_key(params))
        if kept is None:
            self._compiling.submit(self._compile, params).result()
            kept = self._compiled[_key(params)]
        state = GrammarState(kept.deep_copy(), -(-self._vocab_size // 32))
        state.advance(answer)
        return state

    def fill(self, states: Sequence[GrammarState]) -> "Future[None]":
        """Compute the masks of several states, in a thread and without the interpreter's lock. They rest until then."""
        return self._masking.submit(self._fill, states)

    def _fill(self, states: Sequence[GrammarState]) -> None:
        masks = np.empty((len(states), -(-self._vocab_size // 32)), dtype=np.int32)
        matchers = [(state._matcher, row) for row, state in enumerate(states)]
        self._executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, masks.strides[0], len(masks))
        for state, mask in zip(states, masks, strict=True):
            state.mask = mask

    def _compile(self, params: SamplingParams) -> None:
        key = _key(params)
        if key in self._compiled:
            self._compiled.move_to_end(key)
            return
        self._compiled[key] = compile_grammar(params, self._vocabulary())
        if len(self._compiled) > MAX_CACHED:
            self._compiled.popitem(last=False)

    def _vocabulary(self) -> LLTokenizer:
        if self._tokenizer is None:
            if self._load_vocabulary is None or not self._eos_ids:
                lacking = "vocabulary" if self._eos_ids else "end of sequence"
                raise InvalidRequest(f"a grammar needs a model with a known {lacking}", param="guided_json")
            self._tokenizer = _tokenizer(self._load_vocabulary(), vocab_size=self._vocab_size, eos_ids=self._eos_ids)
        return self._tokenizer


def compile_grammar(params: SamplingParams, tokenizer: LLTokenizer) -> LLMatcher:
    """The matcher of the grammar that `params` hold, at its beginning. Raises InvalidRequest, naming the field."""
    field = params.grammar_field
    assert field is not None
    matcher = LLMatcher(tokenizer, lark_of(params), limits=_LIMITS, log_level=0)
    if not matcher.is_error():
        trial = matcher.deep_copy()
        trial.compute_bitmask()
        if not trial.is_error():
            return matcher
        raise InvalidRequest(f"{field} allows no text, or needs too much work: {_said(trial.get_error())}", param=field)
    raise InvalidRequest(f"{field} cannot be followed: {_said(matcher.get_error())}", param=field)


def byte_tokenizer() -> LLTokenizer:
    """A vocabulary of the 256 bytes, to try grammars with; their cost depends little on the vocabulary.

    Any id that a grammar may name is there as well."""
    tokens = [bytes([byte]) for byte in range(256)]
    return _tokenizer(Vocabulary([*tokens, b"</s>"], frozenset({256})), vocab_size=MAX_VOCAB_SIZE, eos_ids=[256])


def lark_of(params: SamplingParams) -> str:
    """The grammar that `params` hold in llguidance's Lark. Raises InvalidRequest if it cannot even be read."""
    if params.guided_json is not None:
        return f"start: %json {_schema(params.guided_json)}{_OPTIONS}"
    if params.guided_regex is not None:
        return f"start: /{regex_to_lark(params.guided_regex, 'd')}/{_OPTIONS}"
    if params.guided_choice is not None:
        return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in params.guided_choice) + _OPTIONS
    assert params.guided_grammar is not None
    try:
        return any_to_lark(params.guided_grammar) + _OPTIONS
    except Exception as error:  # the library raises nothing narrower
        message = f"guided_grammar cannot be followed: {_said(str(error))}"
        raise InvalidRequest(message, param="guided_grammar") from error


def _schema(text: str) -> str:
    """The schema with our white space, as JSON. Raises InvalidRequest if it is no JSON, or needs too many states."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"guided_json must be a JSON schema: {error}", param="guided_json") from error
    if schema is True:
        schema = {}
    if isinstance(schema, dict):
        _refuse_costly(schema)
        own = schema.get("x-guidance")
        schema = {**schema, "x-guidance": {"whitespace_pattern": JSON_SPACE, **(own if isinstance(own, dict) else {})}}
    return json.dumps(schema, ensure_ascii=False)


def _refuse_costly(schema: dict[str, object]) -> None:
    """Raise InvalidRequest for a `multipleOf` whose remainders would be too many states."""
    parts: list[object] = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts += part.values()
            step = part.get("multipleOf")
            if isinstance(step, int | float) and step > MAX_MULTIPLE_OF:
                message = f"guided_json has a multipleOf of {step}; the largest that is supported is {MAX_MULTIPLE_OF}"
                raise InvalidRequest(message, param="guided_json")
        elif isinstance(part, list):
            parts += part


def _tokenizer(vocabulary: Vocabulary, *, vocab_size: int, eos_ids: Sequence[int]) -> LLTokenizer:
    tokens = vocabulary.token_bytes[:vocab_size]
    tokens += [b""] * (vocab_size - len(tokens))  # rows of the embedding without a token
    special = sorted(token_id for token_id in vocabulary.special_ids if token_id < vocab_size)
    return LLTokenizer(TokenizerWrapper(_Tokens(tokens, special, eos_ids[0])), eos_token=list(eos_ids))


class _Tokens:
    """A vocabulary in the shape that llguidance reads."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_token_ids: list[int], eos_token_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_token_ids
        self.eos_token_id = eos_token_id

    def __call__(self, _: bytes) -> list[int]:
        """Asked for only where a grammar forces a tokenisation, which `no_forcing` switches off."""
        return []


def _key(params: SamplingParams) -> tuple[str, str]:
    field = params.grammar_field
    assert field in GRAMMAR_FIELDS
    return field, repr(getattr(params, field))


def _said(error: str) -> str:
    """llguidance's error without the excerpt of a source that is ours in part."""
    text = error.partition("\n   1 | ")[0].partition("\n<non-verbose/>")[0]
    text = text.rpartition("failed to compile JSON schema: ")[2]
    keywords = text.removeprefix("Unimplemented keys: ")
    if keywords != text:
        text = f"the keywords {keywords} of JSON Schema are not supported"
    return text[:MAX_SHOWN]


def _step_back() -> None:
    """Let the model go first where this thread and it want the same core."""
    os.setpriority(os.PRIO_PROCESS, 0, 10)
