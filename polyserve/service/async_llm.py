"""The front of a server: text in, text out, for many requests at a time, with the engine in another process.

    encode, render_chat   off the event loop, in a few threads
    check_grammar         in a process that may die of it
    generate              Add -> engine;  Outputs -> the request's list -> its own task: SequenceText -> ChoiceDelta
    embed                 the same for one vector

Nothing waits for a client: outputs of a request that nobody fetches wait in its list, at most `n` times the
model's length of them, and are handed over as one delta a choice when it comes back. A request that its client leaves
is aborted in the engine, and so is a choice that a stop string has ended. When an engine process ends, requests go on
in the next one; when there is none any more, each ends with EngineDead. Never imports torch and never blocks the loop.
"""

import asyncio
import math
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from polyserve.config import GRAMMAR_TIMEOUT_MS, EngineConfig
from polyserve.errors import DeadlineExceeded, EngineDead, InvalidRequest, PolyServeError
from polyserve.log import get_logger, set_up_logging
from polyserve.output import LogprobEntry, SequenceText, mean_logprob, prompt_logprob_entries
from polyserve.pooling import Pooling, unit_length
from polyserve.request import (
    POOLED,
    FinishReason,
    Request,
    SequenceOutput,
    admit,
    check_request,
    error_of,
    pooling_request,
)
from polyserve.sampling_params import SamplingParams
from polyserve.service.admission import Admission, AdmissionConfig, Ticket
from polyserve.service.engine_process import COMMAND
from polyserve.service.grammar_checker import GrammarChecker
from polyserve.service.messages import Abort, Add, EngineStats, Outputs, Ready
from polyserve.service.supervisor import STEP_TIMEOUT_S, Supervisor
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer
from polyserve.tokenizer.rendering import TemplateProcess
from polyserve.tools.parser import CallDelta

log = get_logger(__name__)
T = TypeVar("T")

TEXT_THREADS = 2  # tokenising releases the GIL, so they run beside the loop


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What is new in one choice of a request. `text` may lag behind `token_ids`: see `polyserve.output`."""

    choice: int
    text: str
    token_ids: list[int]
    logprobs: list[LogprobEntry] | None
    finish_reason: FinishReason | Literal["tool_calls"] | None
    stop_reason: int | str | None
    prompt_logprobs: list[LogprobEntry | None] | None  # with the first delta of choice 0, if asked for
    num_cached_tokens: int
    calls: list[CallDelta] = field(default_factory=list)  # of functions; `text` is without them


class AsyncLLM:
    """Made by `start`. Its attributes are what a server reports of its model; `stats`, the engine's latest counts."""

    def __init__(
        self,
        engine: Supervisor,
        tokenizer: Tokenizer,
        ready: Ready,
        *,
        max_logprobs: int,
        admission: AdmissionConfig | None = None,
        grammar_timeout_ms: int = GRAMMAR_TIMEOUT_MS,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = ready.vocab_size
        self.hidden_size = ready.hidden_size
        self.max_model_len = ready.max_model_len
        self.numerics_id = ready.numerics_id
        self.eos_ids = tuple(ready.eos_ids)
        self.bos_id = ready.bos_id
        self.max_logprobs = max_logprobs
        self.stats: EngineStats = ready.stats
        self.admission = Admission(
            admission or AdmissionConfig(),
            max_num_seqs=engine.config.max_num_seqs,
            vocab_size=ready.vocab_size,
            max_model_len=ready.max_model_len,
        )
        self.dead = asyncio.Event()
        self._engine = engine
        self._death: EngineDead | None = None
        self._streams: dict[str, _Stream] = {}
        template = tokenizer.chat_template
        self._renderer = None if template is None else TemplateProcess(template)
        self._grammars = GrammarChecker(limit_ms=grammar_timeout_ms)
        self._threads = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="text", initializer=_step_back)
        self._watcher = asyncio.create_task(self._watch())
        engine.listen(self._distribute)

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        *,
        chat_template: str | None = None,
        max_logprobs: int = 20,
        command: Sequence[str] = COMMAND,
        step_timeout_s: float = STEP_TIMEOUT_S,
    ) -> "AsyncLLM":
        """Load the model in the engine process, the tokenizer here beside it. Raises ModelLoadError, or EngineDead.

        chat_template: path of a jinja file or a built-in template's name.  command, step_timeout_s: the supervisor's.
        """
        engine, path = await Supervisor.start(config, command, step_timeout_s=step_timeout_s)
        return await cls.join(engine, path, chat_template=chat_template, max_logprobs=max_logprobs)

    @classmethod
    async def join(
        cls,
        engine: Supervisor,
        path: Path,
        *,
        chat_template: str | None = None,
        max_logprobs: int = 20,
        admission: AdmissionConfig | None = None,
        grammar_timeout_ms: int = GRAMMAR_TIMEOUT_MS,
    ) -> "AsyncLLM":
        """The same for what `Supervisor.start` gave. The process is ended if this fails.

        grammar_timeout_ms: processor time that compiling a request's grammar may take.
        """
        try:
            tokenizer, ready = await asyncio.gather(
                asyncio.to_thread(load_tokenizer, path, chat_template=chat_template), engine.ready()
            )
        except BaseException:
            await engine.close()
            raise
        return cls(
            engine,
            tokenizer,
            ready,
            max_logprobs=max_logprobs,
            admission=admission,
            grammar_timeout_ms=grammar_timeout_ms,
        )

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return await self._off_the_loop(partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens))

    async def render_chat(
        self,
        messages: list[dict[str, object]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, object]] | None = None,
    ) -> str:
        """The prompt of a conversation. Encode it with `add_special_tokens=False`: the template writes them itself."""
        return await self._off_the_loop(
            partial(
                self.tokenizer.render_chat if self._renderer is None else self._renderer.render,
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
            )
        )

    async def _off_the_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Raise InvalidRequest if this model can never serve the request."""
        check_request(
            prompt_ids,
            params,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            max_logprobs=self.max_logprobs,
        )

    async def check_grammar(self, params: SamplingParams) -> None:
        """Raise InvalidRequest if `params` hold a grammar that cannot be followed, or only with too much work."""
        await self._grammars.check(params)

    def generate(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        ticket: Ticket | None = None,
        deadline: float = math.inf,
        shown_ids: frozenset[int] = frozenset(),
    ) -> AsyncGenerator[ChoiceDelta, None]:
        """The answer to a prompt as it comes, its choices in any order. Leaving it (`aclose`, cancellation) aborts it.

        ticket: of `admission`; closed at the end.  deadline: in monotonic seconds. It holds wherever the request is,
        and also if nobody fetches what comes.  shown_ids: special tokens whose text is given out all the same.

        Raises what `check` does, Overloaded, InvalidRequest if the engine can never hold it, InternalError if the
        engine gives it up, DeadlineExceeded, EngineDead if there is none any more.
        """
        deltas = self._generate(
            request_id, prompt_ids, params.drawn, ticket=ticket, deadline=deadline, shown_ids=shown_ids
        )
        return deltas if params.drawn is params else _best_of(deltas, params)

    async def _generate(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        ticket: Ticket | None,
        deadline: float,
        shown_ids: frozenset[int],
    ) -> AsyncGenerator[ChoiceDelta, None]:
        self.check(prompt_ids, params)
        texts = {  # of those that go on
            choice: SequenceText(self.tokenizer, params, shown_ids=shown_ids) for choice in range(params.n)
        }
        with self._live(admit(request_id, prompt_ids, params), ticket, deadline) as stream:
            while texts:
                for output in await stream.take():
                    text = texts.get(output.choice)
                    if text is None:
                        continue  # sent before the engine knew of the stop string
                    delta = await self._read(text, output)
                    num_tokens, num_characters = len(delta.token_ids), len(delta.text)
                    self.admission.charge(stream.ticket, num_tokens=num_tokens, num_characters=num_characters)
                    if text.finished:
                        del texts[output.choice]
                        self.admission.choice_ended(stream.ticket, output.choice)
                    yield delta

    async def embed(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        *,
        pooling: Pooling,
        ticket: Ticket | None = None,
        deadline: float = math.inf,
    ) -> list[float]:
        """The prompt's final hidden states, pooled, at unit length. Cancelling aborts it. It raises as `generate`."""
        self.check(prompt_ids, POOLED)
        with self._live(pooling_request(request_id, prompt_ids, pooling), ticket, deadline) as stream:
            [output] = await stream.take()
        if output.pooled is None:
            raise error_of(output)
        return unit_length(output.pooled)

    @contextmanager
    def _live(self, request: Request, ticket: Ticket | None, deadline: float) -> Iterator["_Stream"]:
        """What comes of a request, for as long as the block runs; leaving it early aborts the request."""
        request_id, num_tokens = request.request_id, len(request.prompt_ids)
        ticket = ticket or self.admission.reserve(num_tokens, request.params, tenant=None, num_characters=num_tokens)
        stream = self._open(request_id, ticket, deadline)
        try:
            self.admission.enter(ticket, partial(self._send, Add(request)))
            yield stream
        finally:
            del self._streams[request_id]
            stream.close()
            self._leave(request_id, ticket)

    def _leave(self, request_id: str, ticket: Ticket) -> None:
        """Nothing more is wanted of a request, if it has not ended."""
        if ticket.started and ticket.open_choices:
            self._send(Abort(request_id))
        self.admission.close(ticket)

    def _send(self, message: Add | Abort) -> None:
        if self._death is None:
            self._engine.send(message)

    def _open(self, request_id: str, ticket: Ticket, deadline: float) -> "_Stream":
        if self._death is not None:
            raise EngineDead(self._death.message)
        if request_id in self._streams:
            raise InvalidRequest(f"a request with the id {request_id!r} is being served", param="request_id")
        stream = self._streams[request_id] = _Stream(ticket)
        if deadline < math.inf:
            stream.expire_after(deadline - time.monotonic(), partial(self._leave, request_id, ticket))
        return stream

    async def _read(self, text: SequenceText, output: SequenceOutput) -> ChoiceDelta:
        """The output as text. Raises InternalError if the engine could not go on, InvalidRequest if that is the
        request's own fault."""
        if output.finish_reason == "error":
            raise error_of(output)
        prompt_logprobs = None
        if output.prompt_logprobs is not None:  # one entry for each token of the prompt: too long for the loop
            prompt_logprobs = await self._off_the_loop(
                partial(prompt_logprob_entries, self.tokenizer, output.prompt_logprobs)
            )
        delta = text.push(output)
        if delta.stopped:
            self._engine.send(Abort(output.request_id, output.choice))
        return ChoiceDelta(
            choice=output.choice,
            text=delta.text,
            token_ids=delta.token_ids,
            logprobs=delta.logprobs,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=output.num_cached_tokens,
        )

    @property
    def progressing(self) -> bool:
        """Whether an engine answers. While one is started again requests are taken in all the same, and wait."""
        return self._death is None and self._engine.progressing

    @property
    def num_restarts(self) -> int:
        """How often the engine process was started again."""
        return self._engine.num_restarts

    def set_log_level(self, level: str) -> None:
        """Log from this level on, here and in the engine."""
        set_up_logging(level)
        self._engine.set_log_level(level)

    async def wait_dead(self) -> EngineDead:
        """Wait until there is no engine any more, and say why."""
        await self.dead.wait()
        assert self._death is not None
        return self._death

    async def close(self) -> None:
        """End the engine process. Requests that still run end with EngineDead."""
        self._die(EngineDead("the engine was shut down"))
        self._watcher.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)
        await self._engine.close()
        if self._renderer is not None:
            self._renderer.close()
        await self._grammars.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _distribute(self, step: Outputs) -> None:
        """Hand what a step brought to whom it belongs."""
        self.stats = step.stats
        for refusal in step.refusals:
            if refusal.request_id in self._streams:
                error = InvalidRequest(refusal.message, param=refusal.param, code=refusal.code)
                self._streams[refusal.request_id].fail(error)
        for output in step.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:  # else its client has left
                self.admission.took(stream.ticket)
                if output.finish_reason is not None:
                    self.admission.choice_ended(stream.ticket, output.choice)
                stream.put(output)

    async def _watch(self) -> None:
        """Keep an engine, and notice when there is none any more."""
        try:
            death = await self._engine.supervise()
        except Exception as error:
            log.exception("the engine cannot be supervised any more")
            death = EngineDead(f"the engine cannot be started again: {error}")
        self._die(death)

    def _die(self, death: EngineDead) -> None:
        """End every request. The first reason stays."""
        if self._death is not None:
            return
        self._death = death
        for stream in self._streams.values():
            stream.fail(EngineDead(death.message))
        self.dead.set()


async def _best_of(
    deltas: AsyncGenerator[ChoiceDelta, None], params: SamplingParams
) -> AsyncGenerator[ChoiceDelta, None]:
    """The best of all answers, when all have ended, each as one delta with as much as was asked."""
    parts: dict[int, list[ChoiceDelta]] = {}
    async with aclosing(deltas):
        async for delta in deltas:
            parts.setdefault(delta.choice, []).append(delta)
    entries = {choice: [entry for part in answer for entry in part.logprobs or ()] for choice, answer in parts.items()}
    ranked = sorted(parts, key=lambda choice: (-mean_logprob(entries[choice]), choice))
    prompt_logprobs = next((part.prompt_logprobs for part in parts[0] if part.prompt_logprobs is not None), None)
    for place, choice in enumerate(ranked[: params.n]):
        answer = parts[choice]
        yield replace(
            answer[-1],
            choice=place,
            text="".join(part.text for part in answer),
            token_ids=[token_id for part in answer for token_id in part.token_ids],
            logprobs=None if params.logprobs is None else entries[choice],
            prompt_logprobs=None if place else prompt_logprobs,
            num_cached_tokens=0 if place else parts[0][0].num_cached_tokens,
        )


class _Stream:
    """Outputs of one request between the reader task and the request's own."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self._outputs: list[SequenceOutput] = []
        self._arrived = asyncio.Event()
        self._error: PolyServeError | None = None
        self._timer: asyncio.TimerHandle | None = None

    def expire_after(self, seconds: float, abort: Callable[[], None]) -> None:
        """Fail, and abort the work, unless it is closed by then."""

        def expire() -> None:
            self.fail(DeadlineExceeded("the answer was not complete in the time that the request was given"))
            abort()

        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), expire)

    def close(self) -> None:
        """Nothing more is wanted."""
        if self._timer is not None:
            self._timer.cancel()

    def put(self, output: SequenceOutput) -> None:
        self._outputs.append(output)
        self._arrived.set()

    def fail(self, error: PolyServeError) -> None:
        self._error = error
        self._arrived.set()

    async def take(self) -> list[SequenceOutput]:
        """Wait for outputs and take all that have come, those of a choice as one. Raises what it failed with."""
        await self._arrived.wait()
        self._arrived.clear()
        if self._error is not None:
            raise self._error
        outputs, self._outputs = self._outputs, []
        return outputs if len(outputs) == 1 else merged(outputs)


def merged(outputs: list[SequenceOutput]) -> list[SequenceOutput]:
    """One output for each choice that has any, in the order of their first ones."""
    of_choice: dict[int, list[SequenceOutput]] = {}
    for output in outputs:
        of_choice.setdefault(output.choice, []).append(output)
    return [_joined(parts) for parts in of_choice.values()]


def _joined(parts: list[SequenceOutput]) -> SequenceOutput:
    """Consecutive outputs of a choice as one: all tokens, the prompt's share of the first, the end of the last."""
    return replace(
        parts[-1],
        token_ids=[token_id for part in parts for token_id in part.token_ids],
        logprobs=None if parts[0].logprobs is None else [entry for part in parts for entry in part.logprobs or ()],
        prompt_logprobs=parts[0].prompt_logprobs,
        num_cached_tokens=parts[0].num_cached_tokens,
    )


def _step_back() -> None:
    """Let the loop and the engine go first where this thread and they want the same core."""
    os.setpriority(os.PRIO_PROCESS, 0, 10)
