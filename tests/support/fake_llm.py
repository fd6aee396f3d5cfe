"""AsyncLLM without an engine: the same attributes and calls, one token a byte, answers known beforehand.

Choice c of a prompt answers REPLY from its (seed + c)-th byte on, round and round (no seed: 0), then </s>, after as
many tokens as REPLY has. Log-probabilities are `logprob_of(token, position)`, a prompt's
embedding is `vector_of` it. What goes on can be disturbed:
    live            ids of requests that are being served        aborted     ids of those that were left before the end
    hold(n)         every request waits after n tokens           fail(n, e)  every request raises `e` after n tokens
    release()       they go on
    die()           there is no engine any more                  seen        params of every request, in order
    progressing     False: the engine is being started again     embedded    token ids and pooling of every vector
    reply           what is answered instead of REPLY
Made and used on one event loop; what a test reads or sets from another thread are plain attributes.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from typing import cast

from polyserve.api.frontend import Frontend
from polyserve.api.limits import Limits
from polyserve.api.normalization import Normalization
from polyserve.api.store import Store
from polyserve.api.tracing import Tracing
from polyserve.engine.grammar import byte_tokenizer, compile_grammar
from polyserve.errors import DeadlineExceeded, EngineDead
from polyserve.output import SequenceText, prompt_logprob_entries
from polyserve.pooling import Pooling
from polyserve.request import POOLED, SequenceOutput, TokenLogprob, check_request
from polyserve.sampling_params import SamplingParams
from polyserve.service.admission import Admission, AdmissionConfig, Ticket
from polyserve.service.async_llm import AsyncLLM, ChoiceDelta
from polyserve.service.messages import EngineStats
from polyserve.tokenizer.base import SpecialIds, Tokenizer

REPLY = "Grüße aus 東京! 👍 fin"
BOS, EOS = 256, 257
VOCAB_SIZE = 258
MAX_MODEL_LEN = 400
MAX_LOGPROBS = 20
NUM_CANDIDATES = 40
MODEL_SIZE = 6
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' and message.content == 'refuse me' %}{{ raise_exception('not this') }}{% endif %}"
    "[{{ message.role }}{% if message.name %} {{ message.name }}{% endif %}"
    "{% if message.tool_call_id %} {{ message.tool_call_id }}{% endif %}]{{ message.content }}"
    "{% for call in message.tool_calls %}({{ call.id }} {{ call.function | tojson }}){% endfor %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


class ByteTokenizer(Tokenizer):
    """Token b is the byte b; <s>, which is put before every text, and </s> follow."""

    def __init__(self, *, chat_template: str | None = CHAT_TEMPLATE) -> None:
        super().__init__(
            vocab_size=VOCAB_SIZE,
            special=SpecialIds(bos_id=BOS, eos_id=EOS, eos_ids=(EOS,)),
            adds_bos=True,
            removes_leading_space=False,
            chat_template=chat_template,
        )

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if text == "</s>":
            return [EOS]
        return [BOS] * add_special_tokens + list(text.encode())

    def _bytes_of(self, token_id: int) -> bytes:
        return {BOS: b"<s>", EOS: b"</s>"}.get(token_id) or bytes([token_id])


class FakeLLM:
    """See the module."""

    def __init__(self, *, chat_template: str | None = CHAT_TEMPLATE) -> None:
        self.tokenizer = ByteTokenizer(chat_template=chat_template)
        self.vocab_size = VOCAB_SIZE
        self.hidden_size = MODEL_SIZE
        self.max_model_len = MAX_MODEL_LEN
        self.numerics_id = "fake-numerics"
        self.eos_ids = (EOS,)
        self.bos_id = BOS
        self.max_logprobs = MAX_LOGPROBS
        self.dead = asyncio.Event()
        self.live: set[str] = set()
        self.progressing = True
        self.num_restarts = 0
        self.admission = Admission(
            AdmissionConfig(), max_num_seqs=64, vocab_size=VOCAB_SIZE, max_model_len=MAX_MODEL_LEN
        )
        self.reset()

    def reset(self) -> None:
        """Forget what was seen and what was asked for."""
        self.reply = REPLY
        self.aborted: list[str] = []
        self.seen: list[SamplingParams] = []
        self.embedded: list[tuple[list[int], str]] = []
        self._hold_after: int | None = None
        self._failure: tuple[int, Exception] | None = None

    @property
    def stats(self) -> EngineStats:
        return EngineStats(len(self.live), 2, 75, 100, 3, 40, 10)

    def hold(self, num_tokens: int) -> None:
        self._hold_after = num_tokens

    def release(self) -> None:
        self._hold_after = None

    def fail(self, num_tokens: int, error: Exception) -> None:
        self._failure = num_tokens, error

    def die(self) -> None:
        self.dead.set()

    async def wait_dead(self) -> EngineDead:
        await self.dead.wait()
        return EngineDead("the engine process ended (killed by SIGKILL)")

    async def close(self) -> None:
        self.die()

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def render_chat(
        self,
        messages: list[dict[str, object]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, object]] | None = None,
    ) -> str:
        return self.tokenizer.render_chat(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
        )

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        check_request(
            prompt_ids,
            params,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            max_logprobs=self.max_logprobs,
        )

    async def check_grammar(self, params: SamplingParams) -> None:
        if params.grammar_field is not None:
            compile_grammar(params, byte_tokenizer())

    async def generate(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        shown_ids: frozenset[int] = frozenset(),
        ticket: Ticket | None = None,
        deadline: float = math.inf,
    ) -> AsyncGenerator[ChoiceDelta, None]:
        self.check(prompt_ids, params)
        if self.dead.is_set():
            raise await self.wait_dead()
        self.seen.append(params)
        self.live.add(request_id)
        if ticket is not None:
            ticket.sent_at = time.monotonic()
        texts = {choice: SequenceText(self.tokenizer, params) for choice in range(params.n)}
        position = 0
        try:
            while texts:
                await self._disturb(position, deadline)
                for choice in sorted(texts, reverse=True):  # their order is nothing to rely on
                    output = next_output(request_id, choice, position, prompt_ids, params, reply=self.reply.encode())
                    delta = texts[choice].push(output)
                    if delta.finish_reason is not None:
                        del texts[choice]
                    entries = prompt_logprob_entries(self.tokenizer, output.prompt_logprobs)
                    yield ChoiceDelta(
                        choice=choice,
                        text=delta.text,
                        token_ids=delta.token_ids,
                        logprobs=delta.logprobs,
                        finish_reason=delta.finish_reason,
                        stop_reason=delta.stop_reason,
                        prompt_logprobs=entries,
                        num_cached_tokens=output.num_cached_tokens,
                    )
                position += 1
        finally:
            self.live.discard(request_id)
            if texts:
                self.aborted.append(request_id)

    async def embed(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        *,
        pooling: Pooling,
        ticket: Ticket | None = None,
        deadline: float = math.inf,
    ) -> list[float]:
        self.check(prompt_ids, POOLED)
        self.embedded.append((list(prompt_ids), pooling))
        self.live.add(request_id)
        ended = False
        try:
            await self._disturb(0, deadline)
            ended = True
        finally:
            self.live.discard(request_id)
            if not ended:
                self.aborted.append(request_id)
        return vector_of(prompt_ids, pooling)

    async def _disturb(self, position: int, deadline: float) -> None:
        """Whatever the test asked to happen before the token at this position."""
        await asyncio.sleep(0)
        if self._failure is not None and position == self._failure[0]:
            raise self._failure[1]
        while not self.dead.is_set() and position == self._hold_after:
            if time.monotonic() > deadline:
                raise DeadlineExceeded("the time is over")
            await asyncio.sleep(0.002)
        if self.dead.is_set():
            raise await self.wait_dead()


def next_output(
    request_id: str, choice: int, position: int, prompt_ids: Sequence[int], params: SamplingParams, *, reply: bytes
) -> SequenceOutput:
    """What the engine sends for the answer's token at `position`."""
    ended = position == len(reply) and not params.ignore_eos
    token_id = EOS if position == len(reply) else reply[(position + (params.seed or 0) + choice) % len(reply)]
    stops = ended or token_id in params.stop_token_ids
    room = MAX_MODEL_LEN - len(prompt_ids)
    last = position + 1 == min(room if params.max_tokens is None else params.max_tokens, room)
    token_ids = [] if params.max_tokens == 0 else [token_id]
    num_top = params.logprobs
    scored = None
    if position == 0 and choice == 0 and params.prompt_logprobs is not None:
        scored = [None, *(scores(t, i, params.prompt_logprobs) for i, t in enumerate(prompt_ids) if i)]
    return SequenceOutput(
        request_id,
        choice,
        token_ids,
        logprobs=None if num_top is None else [scores(t, len(prompt_ids) + position, num_top) for t in token_ids],
        finish_reason="stop" if stops and token_ids else "length" if last or not token_ids else None,
        stop_reason=token_id if stops and token_id != EOS else None,
        prompt_logprobs=scored,
        num_cached_tokens=4 if position == 0 else 0,
    )


def vector_of(prompt_ids: Sequence[int], pooling: Pooling) -> list[float]:
    """MODEL_SIZE numbers, the first of which grows with the prompt."""
    return [len(prompt_ids), 1.0 if pooling == "mean" else 2.0, *[0.5 + prompt_ids[-1]] * (MODEL_SIZE - 2)]


def logprob_of(token_id: int, position: int) -> float:
    """No two of the candidates at a position are equal."""
    return -(1 + (token_id * 7 + position * 3) % 41) / 16


def scores(token_id: int, position: int, num_top: int) -> TokenLogprob:
    """The token and the likeliest of the ids around it."""
    candidates = [(token_id + step) % VOCAB_SIZE for step in range(NUM_CANDIDATES)]
    ranked = sorted(candidates, key=lambda t: (-logprob_of(t, position), t))[:num_top]
    return TokenLogprob(token_id, logprob_of(token_id, position), ranked, [logprob_of(t, position) for t in ranked])


def fake_frontend(
    llm: FakeLLM | None = None,
    *,
    limits: Limits | None = None,
    request_timeout_s: float = math.inf,
    tracing: Tracing | None = None,
    store: Store | None = None,
    normalization: Normalization = "none",
) -> Frontend:
    """A Frontend in front of a FakeLLM."""
    return Frontend(
        cast(AsyncLLM, llm or FakeLLM()),
        model_names=("fake", "org/alias"),
        limits=limits,
        request_timeout_s=request_timeout_s,
        tracing=tracing,
        store=store,
        normalization=normalization,
    )
