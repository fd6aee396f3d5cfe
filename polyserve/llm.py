"""Text in, text out, offline: the engine in this process, many prompts at a time.

    llm = LLM("smollm2")
    [answer] = llm.generate("The capital of France is", SamplingParams(temperature=0.0, max_tokens=8))
    print(answer.outputs[0].text)

Every prompt is tokenised and checked before anything is computed, so that a bad one in a long list costs nothing. The
answers are the same tokens that a server gives for the same prompt, parameters and seed.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from types import FrameType
from typing import Protocol, TypeVar, cast

from tqdm import tqdm

from polyserve.config import EngineConfig
from polyserve.engine.engine import Engine
from polyserve.errors import InvalidRequest
from polyserve.model.weights.resolve import resolve
from polyserve.output import CompletionOutput, RequestOutput, SequenceText, mean_logprob, prompt_logprob_entries
from polyserve.pooling import Pooling, unit_length
from polyserve.request import POOLED, Request, SequenceOutput, admit, check_request, error_of, pooling_request
from polyserve.sampling_params import SamplingParams
from polyserve.scoring import SCORING, Scorable, Score, scorable, score_of
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer

Prompt = str | list[int]  # text, or token ids as they are
Message = dict[str, object]  # {"role": "user", "content": "..."}

T = TypeVar("T")
R = TypeVar("R")

PROGRESS_AFTER_S = 2.0


class LLM:
    """One model, loaded when this is made. One call at a time."""

    def __init__(
        self,
        model: str | None = None,
        *,
        config: EngineConfig | None = None,
        chat_template: str | None = None,
        max_logprobs: int = 20,
    ) -> None:
        """Load `model` as `config` says; the model may also be named in `config`. Raises ModelLoadError.

        chat_template: path of a jinja file or a built-in template's name; default: the checkpoint's.
        max_logprobs: most alternatives that one may ask for at each token.
        """
        config = config or EngineConfig()
        path = resolve(model or config.model)
        self.tokenizer: Tokenizer = load_tokenizer(path, chat_template=chat_template)
        self.engine = Engine.from_config(replace(config, model=str(path)), load_vocabulary=self.tokenizer.vocabulary)
        self.max_logprobs = max_logprobs
        self._request_ids = map(str, count())

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one prompt or many, in order. `params` is for all of them, or one for each.

        Raises InvalidRequest, before anything is computed, if one of them can never be served. With `use_tqdm` a list
        that takes long shows its progress.
        """
        return self._answer(_listed(prompts), params, self._encode, use_tqdm=use_tqdm)

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, through the model's chat template. Otherwise as `generate`."""
        alone = len(conversations) > 0 and isinstance(conversations[0], dict)
        listed = cast("list[list[Message]]", [conversations] if alone else conversations)

        def encode(conversation: list[Message]) -> tuple[str, list[int]]:
            prompt = self.tokenizer.render_chat(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            return prompt, self.tokenizer.encode(prompt, add_special_tokens=False)  # the template wrote them itself

        return self._answer(listed, params, encode, use_tqdm=use_tqdm)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling = "last",
        normalize: bool = True,
        use_tqdm: bool = True,
    ) -> list[list[float]]:
        """One vector for each prompt: its final hidden states, pooled, at unit length unless `normalize` is false.

        Raises InvalidRequest, before anything is computed, if one of the prompts can never be served.
        """

        def admit_one(prompt: Prompt) -> _Vector:
            prompt_ids = self._encode(prompt)[1]
            self._check(prompt_ids, POOLED)
            return _Vector(pooling_request(next(self._request_ids), prompt_ids, pooling))

        jobs = _each(_listed(prompts), admit_one)
        self._run(jobs, use_tqdm=use_tqdm)
        return [unit_length(job.values) if normalize else job.values for job in jobs]

    def score(self, texts: Sequence[str | tuple[str, str]], *, use_tqdm: bool = True) -> list[Score]:
        """How likely the model finds each text, or each continuation of a context: see `polyserve.scoring`.

        Raises InvalidRequest, before anything is computed, if one of them can never be scored.
        """

        def admit_one(text: str | tuple[str, str]) -> tuple[Scorable, _Answer]:
            context, continuation = ("", text) if isinstance(text, str) else text
            scored = scorable(self.tokenizer, context, continuation)
            return scored, self._admit(None, scored.prompt_ids, SCORING)

        jobs = _each(texts, admit_one)
        self._run([job for _, job in jobs], use_tqdm=use_tqdm)
        return [score_of(scored, job.output.prompt_logprobs or []) for scored, job in jobs]

    def _encode(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt)
        return None, list(prompt)

    def _answer(
        self,
        inputs: Sequence[T],
        params: SamplingParams | Sequence[SamplingParams] | None,
        encode: Callable[[T], tuple[str | None, list[int]]],
        *,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        """Admit every input, then run them all."""
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(inputs)
        if len(params) != len(inputs):
            raise ValueError(f"params must be one for all or one for each of {len(inputs)} prompts, got {len(params)}")
        jobs = _each(
            list(zip(inputs, params, strict=True)),
            lambda pair: self._admit(*encode(pair[0]), pair[1]),
        )
        self._run(jobs, use_tqdm=use_tqdm)
        return [job.output for job in jobs]

    def _check(self, prompt_ids: list[int], params: SamplingParams) -> None:
        check_request(
            prompt_ids,
            params,
            vocab_size=self.engine.vocab_size,
            max_model_len=self.engine.max_model_len,
            max_logprobs=self.max_logprobs,
        )

    def _admit(self, prompt: str | None, prompt_ids: list[int], params: SamplingParams) -> "_Answer":
        """Check a prompt and make it a request. Raises InvalidRequest."""
        self._check(prompt_ids, params)
        if params.max_tokens == 0 and params.prompt_logprobs is None:
            raise InvalidRequest(
                "max_tokens must be at least 1 unless prompt_logprobs is set, got 0", param="max_tokens"
            )
        self.engine.check_grammar(params)
        return _Answer(admit(next(self._request_ids), prompt_ids, params.drawn), prompt, self.tokenizer, params)

    def _run(self, jobs: "Sequence[_Job]", *, use_tqdm: bool) -> None:
        """Step until every job is done. Whatever ends this early (an error, Ctrl-C) leaves the engine empty."""
        live = {job.request.request_id: job for job in jobs}
        bar = tqdm(total=len(jobs), unit="prompt", disable=not use_tqdm or len(jobs) < 2, delay=PROGRESS_AFTER_S)
        with bar, _interrupts_between_steps() as let_interrupt:
            try:
                for job in jobs:
                    self.engine.add(job.request)
                while live:
                    for output in self.engine.step():
                        job = live[output.request_id]
                        if job.take(output):
                            self.engine.abort(output.request_id, output.choice)
                        if job.finished:
                            del live[output.request_id]
                            bar.update()
                    let_interrupt()
            finally:
                for request_id in live:
                    self.engine.abort(request_id)


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    alone = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
    return cast("list[Prompt]", [prompts] if alone else list(prompts))


def _each(inputs: Sequence[T], make: Callable[[T], R]) -> list[R]:
    """`make` of every input; if it refuses one of several, the error says which."""
    made = []
    for index, its_input in enumerate(inputs):
        try:
            made.append(make(its_input))
        except InvalidRequest as error:
            if len(inputs) == 1:
                raise
            message = f"prompt {index} of {len(inputs)}: {error.message}"
            raise InvalidRequest(message, param=error.param, code=error.code) from error
    return made


class _Job(Protocol):
    """A request and what has come for it."""

    request: Request

    @property
    def finished(self) -> bool: ...
    def take(self, output: SequenceOutput) -> bool:
        """Add what a step brought. Returns whether the output's choice has to be aborted."""


class _Vector:
    """A request for an embedding."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.values: list[float] = []

    @property
    def finished(self) -> bool:
        return bool(self.values)

    def take(self, output: SequenceOutput) -> bool:
        if output.pooled is None:
            raise error_of(output)
        self.values = output.pooled
        return False


class _Answer:
    """A request and its answers so far."""

    def __init__(self, request: Request, prompt: str | None, tokenizer: Tokenizer, asked: SamplingParams) -> None:
        """asked: what the caller wants to see of `request`, which may bring more answers than that."""
        params = request.params
        choices = range(params.n)
        wanted = params.logprobs is not None
        self.request = request
        self.output = RequestOutput(
            request_id=request.request_id,
            prompt=prompt,
            prompt_token_ids=request.prompt_ids,
            outputs=[
                CompletionOutput(choice, "", [], 0.0 if wanted else None, [] if wanted else None, None, None)
                for choice in choices
            ],
            prompt_logprobs=None,
            finished=False,
            num_cached_tokens=0,
        )
        self._tokenizer = tokenizer
        self._asked = asked
        self._texts = {choice: SequenceText(tokenizer, params) for choice in choices}  # those that go on

    @property
    def finished(self) -> bool:
        return self.output.finished

    def take(self, output: SequenceOutput) -> bool:
        """Add what a step brought. Returns whether the choice has to be aborted: a stop string has ended it."""
        if output.finish_reason == "error":
            raise error_of(output)
        text = self._texts.get(output.choice)
        if text is None:
            return False  # computed before the engine knew of the stop string
        delta = text.push(output)
        answer = self.output.outputs[output.choice]
        answer.text += delta.text
        answer.token_ids += delta.token_ids
        if delta.logprobs is not None and answer.logprobs is not None and answer.cumulative_logprob is not None:
            answer.logprobs += delta.logprobs
            answer.cumulative_logprob += sum(entry.logprob for entry in delta.logprobs)
        elif output.cumulative_logprob is not None:
            answer.cumulative_logprob = output.cumulative_logprob
        answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason
        if output.prompt_logprobs is not None:
            self.output.prompt_logprobs = prompt_logprob_entries(self._tokenizer, output.prompt_logprobs)
        self.output.num_cached_tokens = max(self.output.num_cached_tokens, output.num_cached_tokens)
        if text.finished:
            del self._texts[output.choice]
        self.output.finished = not self._texts
        if self.output.finished and self._asked.drawn is not self._asked:
            self._pick()
        return delta.stopped

    def _pick(self) -> None:
        """Keep the best answers, as many and with as much as was asked."""
        ranked = sorted(self.output.outputs, key=lambda answer: -mean_logprob(answer.logprobs or []))
        self.output.outputs = [
            replace(answer, index=index, logprobs=None if self._asked.logprobs is None else answer.logprobs)
            for index, answer in enumerate(ranked[: self._asked.n])
        ]


@contextmanager
def _interrupts_between_steps() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back, so that no step is left half done; it happens where the function that this yields is called."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield lambda: None
        return
    held: list[tuple[int, FrameType | None]] = []

    def let_interrupt() -> None:
        if held:
            handler(*held.pop())

    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield let_interrupt
    finally:
        signal.signal(signal.SIGINT, handler)
