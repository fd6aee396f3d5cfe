"""What HTTP and gRPC share of a request's life, so that both check the same things and say the same words.

    options given -> SamplingParams -> prompt as token ids -> every check -> Admitted      (admit_prompts, admit_chat)
    Admitted -> deltas of all its choices, in the order they come -> usage, metrics        (run)

A protocol only reads its own messages into these calls and writes the deltas out again. Nothing here blocks the event
loop: tokenising and template rendering run in AsyncLLM's threads.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from polyserve.api.conversation import Conversation
from polyserve.api.limits import Limits
from polyserve.api.merge import merged
from polyserve.api.metrics import Metrics, Record
from polyserve.api.normalization import Normalization, normalized
from polyserve.api.store import Store
from polyserve.api.tracing import Tracing
from polyserve.errors import DeadlineExceeded, EngineDead, InvalidRequest, ModelNotFound, NotFound, NotReady
from polyserve.pooling import Pooling
from polyserve.request import POOLED
from polyserve.sampling_params import SamplingParams
from polyserve.scoring import SCORING, Scorable, Score, scorable, score_of
from polyserve.service.admission import Ticket
from polyserve.service.async_llm import AsyncLLM, ChoiceDelta
from polyserve.tools.calls import Calls
from polyserve.tools.definition import ToolUse
from polyserve.tools.formats import choose_format
from polyserve.tools.parser import CallParser


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str | None  # None if it was given as token ids
    token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A request that passed every check. Choice c of prompt p has the index p * n + c."""

    request_id: str
    prompts: list[Prompt]
    params: SamplingParams
    arrived: float  # monotonic seconds, before tokenising
    deadline: float  # monotonic seconds
    tenant: str | None = None  # whose API key it came with, where keys are required
    calls: Calls | None = None  # that its answers may make

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.params.n

    def own_params(self) -> SamplingParams:
        """The parameters with the tenant in their salt: how fast an answer comes tells nothing of others' prompts."""
        if self.tenant is None:
            return self.params
        salt = blake2b(f"{self.tenant}\0{self.params.cache_salt or ''}".encode(), digest_size=16).hexdigest()
        return replace(self.params, cache_salt=salt)


@dataclass(slots=True)
class Usage:
    """Tokens of one request: its prompts once, whatever `n`, and what all choices have generated."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    _known: set[int] = field(default_factory=set)  # prompts whose cached tokens are counted

    @classmethod
    def of(cls, request: Admitted) -> "Usage":
        return cls(sum(len(prompt.token_ids) for prompt in request.prompts))

    def count(self, prompt_index: int, delta: ChoiceDelta) -> None:
        self.completion_tokens += len(delta.token_ids)
        if prompt_index not in self._known:
            self._known.add(prompt_index)
            self.cached_tokens += delta.num_cached_tokens


class Frontend:
    """One served model, as both protocols see it."""

    def __init__(
        self,
        llm: AsyncLLM,
        *,
        model_names: Sequence[str],
        limits: Limits | None = None,
        tool_call_parser: str = "auto",
        request_timeout_s: float = math.inf,
        metrics_compat: str = "none",
        tracing: Tracing | None = None,
        store: Store | None = None,
        normalization: Normalization = "none",
    ) -> None:
        """model_names: what clients may call the model; responses carry the first.

        tool_call_parser: how the model writes calls of functions, one of `TOOL_CALL_PARSERS`.
        metrics_compat: none or vllm.  store: of completions.  normalization: of every text before it is tokenised.
        """
        self.llm = llm
        self.request_timeout_s = request_timeout_s
        self.draining = False
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.limits = limits or Limits()
        self.model_names = tuple(model_names)
        self.created = int(time.time())
        self._store = store
        self._normalization = normalization
        self.tracing = tracing
        self.metrics = Metrics(llm, model_name=self.model_name, vllm_names=metrics_compat == "vllm")
        template = llm.tokenizer.chat_template
        self._call_format = choose_format(tool_call_parser, None if template is None else template.source)

    @property
    def model_name(self) -> str:
        return self.model_names[0]

    def check_model(self, name: str | None) -> None:
        """Raise ModelNotFound unless the name is a served one or left out."""
        if name is not None and name not in self.model_names:
            served = " or ".join(map(repr, self.model_names))
            message = f"the model {shortened(name)} is not served here; this server has {served}"
            raise ModelNotFound(message, param="model", code="model_not_found")

    @property
    def completions(self) -> Store:
        """The completions that were kept. Raises NotFound where none are."""
        if self._store is None:
            raise NotFound("this server keeps no completions: it was started without --store", code="not_stored")
        return self._store

    def check_store(self, wanted: bool) -> None:
        """Raise InvalidRequest if an answer is to be kept that cannot be."""
        if wanted and self._store is None:
            raise InvalidRequest("store is not supported by this server: it was started without --store", param="store")

    def check_ready(self) -> None:
        """Raise EngineDead or NotReady if a request would not be answered now."""
        self._check_open()
        if not self.llm.progressing:
            raise NotReady("the engine does not answer; it is started again if need be", retry_after_s=1)

    def _check_open(self) -> None:
        """Raise EngineDead or NotReady if no more requests are taken in."""
        if self.llm.dead.is_set():
            raise EngineDead("the engine has ended; this server can answer no requests")
        if self.draining:
            raise NotReady("the server is about to end and takes no more requests", retry_after_s=1)

    def check_room(self) -> None:
        """Raise EngineDead, NotReady or Overloaded, and count a refusal, if nothing is taken in now."""
        with self.metrics.refusals():
            self._check_open()
            self.llm.admission.check_room()

    async def wait_idle(self) -> None:
        """Wait until no request is being answered."""
        await self._idle.wait()

    async def admit_prompts(
        self,
        request_id: str,
        prompts: Sequence[str | Sequence[int]],
        options: Mapping[str, Any],
        *,
        echo: bool = False,
        renamed: Mapping[str, str] | None = None,
        tenant: str | None = None,
        timeout_s: float | None = None,
    ) -> Admitted:
        """Check a completion. `options` are those fields of SamplingParams that the client gave.

        renamed: what the protocol calls some of the options, for errors that name them.
        timeout_s: how long it may take, if that is less than this server's own limit.
        """
        async with self._admitting(timeout_s, renamed or {}) as (arrived, deadline):
            params = self._sampling_params(options, scores_prompt=echo)
            read = await self.read_inputs(prompts, params)
        return Admitted(
            request_id=request_id, prompts=read, params=params, arrived=arrived, deadline=deadline, tenant=tenant
        )

    async def admit_inputs(
        self,
        request_id: str,
        inputs: Sequence[str | Sequence[int]],
        *,
        tenant: str | None = None,
        timeout_s: float | None = None,
    ) -> Admitted:
        """Check a request for vectors, which calls its prompts `input`."""
        async with self._admitting(timeout_s, {"prompt": "input"}) as (arrived, deadline):
            read = await self.read_inputs(inputs, POOLED)
        return Admitted(
            request_id=request_id, prompts=read, params=POOLED, arrived=arrived, deadline=deadline, tenant=tenant
        )

    async def admit_scores(
        self,
        request_id: str,
        pairs: Sequence[tuple[str, str]],
        *,
        tenant: str | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Admitted, list[Scorable]]:
        """Check a request for the scores of continuations after their contexts, which it calls its `inputs`."""
        async with self._admitting(timeout_s, {"prompt": "inputs"}) as (arrived, deadline):
            self._check_sizes([context + continuation for context, continuation in pairs], SCORING)
            texts = [await asyncio.to_thread(self._scorable, *pair) for pair in pairs]
            for scored in texts:
                self.llm.check(scored.prompt_ids, SCORING)
        prompts = [Prompt(None, scored.prompt_ids) for scored in texts]
        admitted = Admitted(
            request_id=request_id, prompts=prompts, params=SCORING, arrived=arrived, deadline=deadline, tenant=tenant
        )
        return admitted, texts

    def _scorable(self, context: str, continuation: str) -> Scorable:
        context, continuation = (normalized(text, self._normalization) for text in (context, continuation))
        return scorable(self.llm.tokenizer, context, continuation)

    async def score(self, request: Admitted, texts: Sequence[Scorable]) -> list[Score]:
        """The scores of what `admit_scores` admitted. Leaving it aborts it."""
        scores: dict[int, Score] = {}
        async with aclosing(self.run(request)) as deltas:
            async for index, delta in deltas:
                if delta.prompt_logprobs is not None:
                    scores[index] = score_of(texts[index], delta.prompt_logprobs)
        return [scores[index] for index in range(len(texts))]

    async def read_inputs(self, prompts: Sequence[str | Sequence[int]], params: SamplingParams) -> list[Prompt]:
        """All prompts of a request, checked: before any is tokenised what can be, then as requests to the model."""
        self._check_sizes(prompts, params)
        await self.llm.check_grammar(params)
        read = [await self.read_prompt(prompt) for prompt in prompts]
        for prompt in read:
            self.llm.check(prompt.token_ids, params)
        return read

    def _check_sizes(self, prompts: Sequence[str | Sequence[int]], params: SamplingParams) -> None:
        """Raise InvalidRequest for what is too much before anything is tokenised."""
        self.limits.check_prompts(prompts, params)
        for text in prompts:
            if isinstance(text, str):
                self.limits.check_length(len(text.encode(errors="replace")), max_model_len=self.llm.max_model_len)

    async def admit_chat(
        self,
        request_id: str,
        conversation: Conversation,
        options: Mapping[str, Any],
        *,
        use: ToolUse | None = None,
        renamed: Mapping[str, str] | None = None,
        tenant: str | None = None,
        timeout_s: float | None = None,
    ) -> Admitted:
        """Check a chat request. `use`: what it may call. Otherwise as `admit_prompts`."""
        names = {"prompt": "messages", **(renamed or {})}
        calls = None
        if use is not None:
            with naming(names):
                calls = Calls.of(use, self._call_format)
                options = calls.guide(options, self.llm.tokenizer)
            conversation = replace(conversation, tools=use.tools)
            names["guided_grammar"] = "tools"
        async with self._admitting(timeout_s, names) as (arrived, deadline):
            params = self._sampling_params({"max_tokens": None, **options})
            self.limits.check_length(conversation.num_bytes, max_model_len=self.llm.max_model_len)
            await self.llm.check_grammar(params)
            prompt = await self.read_conversation(conversation)
            self.llm.check(prompt.token_ids, params)
        return Admitted(
            request_id=request_id,
            prompts=[prompt],
            params=params,
            arrived=arrived,
            deadline=deadline,
            tenant=tenant,
            calls=calls,
        )

    @asynccontextmanager
    async def _admitting(
        self, timeout_s: float | None, renamed: Mapping[str, str]
    ) -> AsyncIterator[tuple[float, float]]:
        """The time of arrival and the deadline, which also ends what is done inside. `naming` is for its errors."""
        self.check_room()
        with self.metrics.refusals(), naming(renamed):
            arrived = time.monotonic()
            limit_s = self.request_timeout_s if timeout_s is None else min(timeout_s, self.request_timeout_s)
            try:
                async with asyncio.timeout(limit_s if limit_s < math.inf else None):
                    yield arrived, arrived + limit_s
            except TimeoutError:
                raise DeadlineExceeded(f"the request was not read in {limit_s:g} s, the time it was given") from None

    def _sampling_params(self, options: Mapping[str, Any], *, scores_prompt: bool = False) -> SamplingParams:
        params = SamplingParams(**options)
        if params.max_tokens == 0 and not scores_prompt and params.prompt_logprobs is None:
            message = "max_tokens must be at least 1 where neither echo nor prompt_logprobs asks for the prompt, got 0"
            raise InvalidRequest(message, param="max_tokens")
        self.limits.check_params(params)
        return params

    async def read_prompt(self, prompt: str | Sequence[int], *, add_special_tokens: bool = True) -> Prompt:
        """A prompt as token ids; ids are taken as they are."""
        if not isinstance(prompt, str):
            return Prompt(None, list(prompt))
        text = prompt
        if self._normalization != "none":
            text = await asyncio.to_thread(normalized, prompt, self._normalization)
        return Prompt(text, await self.llm.encode(text, add_special_tokens=add_special_tokens))

    async def read_conversation(self, conversation: Conversation, *, add_special_tokens: bool = False) -> Prompt:
        """The prompt that the chat template makes; it writes the special tokens itself."""
        messages = conversation.messages
        self.limits.check_messages(messages)
        conversation.check()
        text = await self.llm.render_chat(
            [message.for_template() for message in messages],
            add_generation_prompt=conversation.adds_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            tools=[tool.for_template() for tool in conversation.tools] or None,
        )
        return await self.read_prompt(text, add_special_tokens=add_special_tokens)

    async def decode(self, token_ids: Sequence[int], *, field: str, skip_special_tokens: bool) -> str:
        """The text of token ids, which the protocol calls `field`."""
        tokenizer = self.llm.tokenizer
        for token_id in token_ids:
            if not 0 <= token_id < tokenizer.vocab_size:
                message = f"{field} holds token id {token_id}; this tokenizer's ids are 0 to {tokenizer.vocab_size - 1}"
                raise InvalidRequest(message, param=field)
        return await asyncio.to_thread(tokenizer.decode, token_ids, skip_special_tokens=skip_special_tokens)

    async def embed(self, request: Admitted, pooling: Pooling) -> list[list[float]]:
        """One vector for each prompt. The first error, and cancellation, abort all of them in the engine."""

        async def compute(index: int, ticket: Ticket) -> list[float]:
            prompt, request_id = request.prompts[index], f"{request.request_id}-{index}"
            with self.metrics.request(request.arrived, prompt.text, ticket, request.params.n) as record:
                vector = await self.llm.embed(
                    request_id, prompt.token_ids, pooling=pooling, ticket=ticket, deadline=request.deadline
                )
                record.vector()
            return vector

        with self._running(), self._places(request) as tickets:
            tasks = [asyncio.create_task(compute(index, ticket)) for index, ticket in enumerate(tickets)]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self, request: Admitted) -> AsyncGenerator[tuple[int, ChoiceDelta], None]:
        """(prompt's index, delta) as they come. Leaving it early (`aclose`, cancellation) aborts it in the engine.

        A prompt's first delta carries its log-probabilities, if they were asked for, whichever choice it belongs to.
        """
        with self._running():
            async with aclosing(self._run(request)) as deltas:
                async for item in deltas:
                    yield item

    @contextmanager
    def _running(self) -> Iterator[None]:
        """While a request is being answered."""
        self._num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()

    async def _run(self, request: Admitted) -> AsyncGenerator[tuple[int, ChoiceDelta], None]:
        run = self._run_prompt if request.params.prompt_logprobs is None else self._run_scored
        with self._places(request) as tickets:
            streams = [run(request, index, ticket) for index, ticket in enumerate(tickets)]
            async with aclosing(merged(streams)) as deltas:
                async for item in deltas:
                    yield item

    @contextmanager
    def _places(self, request: Admitted) -> Iterator[list[Ticket]]:
        """A place for each prompt, or Overloaded for all of them."""
        admission, params = self.llm.admission, request.params.drawn
        tickets: list[Ticket] = []
        try:
            with self.metrics.refusals():
                for prompt in request.prompts:
                    length = len(prompt.token_ids)
                    num_characters = length if prompt.text is None else len(prompt.text)
                    tickets.append(
                        admission.reserve(length, params, tenant=request.tenant, num_characters=num_characters)
                    )
            yield tickets
        finally:
            for ticket in tickets:
                admission.close(ticket)

    async def _run_prompt(self, request: Admitted, index: int, ticket: Ticket) -> AsyncGenerator[ChoiceDelta, None]:
        prompt, params = request.prompts[index], request.own_params()
        request_id = f"{request.request_id}-{index}"
        calls = request.calls
        parsers = [] if calls is None else [calls.parser() for _ in range(params.n)]
        stream = self.llm.generate(
            request_id,
            prompt.token_ids,
            params,
            ticket=ticket,
            deadline=request.deadline,
            shown_ids=frozenset() if calls is None else calls.shown_ids(self.llm.tokenizer),
        )
        with (
            self.metrics.request(request.arrived, prompt.text, ticket, params.n) as record,
            self._traced(request_id, record),
        ):
            async with aclosing(stream) as deltas:
                async for delta in deltas:
                    record.delta(delta)
                    yield with_calls(delta, parsers[delta.choice]) if parsers else delta

    def _traced(self, request_id: str, record: Record) -> AbstractContextManager[None]:
        return nullcontext() if self.tracing is None else self.tracing.answer(request_id, record)

    async def _run_scored(self, request: Admitted, index: int, ticket: Ticket) -> AsyncGenerator[ChoiceDelta, None]:
        """The same, with what comes before the prompt's log-probabilities held back behind them."""
        held: list[ChoiceDelta] | None = []
        async with aclosing(self._run_prompt(request, index, ticket)) as deltas:
            async for delta in deltas:
                if held is not None and delta.prompt_logprobs is None:
                    held.append(delta)
                    continue
                yield delta
                for earlier in held or ():
                    yield earlier
                held = None


def with_calls(delta: ChoiceDelta, parser: CallParser) -> ChoiceDelta:
    """The delta with what of its text are calls of functions told apart."""
    found = parser.push(delta.text)
    text, calls, reason = found.text, found.calls, delta.finish_reason
    if reason is not None:
        rest = parser.flush(cut=reason == "length" or isinstance(delta.stop_reason, str))
        text, calls = text + rest.text, calls + rest.calls
        if reason == "stop" and parser.has_called:
            reason = "tool_calls"
    return replace(delta, text=text, calls=calls, finish_reason=reason)


@contextmanager
def naming(renamed: Mapping[str, str]) -> Iterator[None]:
    """Let an error name the field as the client wrote it, where a protocol calls it differently."""
    try:
        yield
    except InvalidRequest as error:
        name = renamed.get(error.param or "")
        if name is None:
            raise
        message = f"{name} {error.message.removeprefix(f'{error.param} ')}" if _names(error) else error.message
        raise InvalidRequest(message, param=name, code=error.code) from None


def _names(error: InvalidRequest) -> bool:
    return error.message.startswith(f"{error.param} ")


def shortened(text: str, *, limit: int = 60) -> str:
    """A client's own words in an error message: quoted, on one line, and not longer than it takes to recognise them."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text)} characters)"
