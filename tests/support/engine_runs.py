"""Drive an in-process engine to the end of some requests and collect what each choice got."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from polyserve.config import EngineConfig
from polyserve.engine.engine import Engine
from polyserve.model.decoder import Decoder
from polyserve.request import Request, TokenLogprob
from polyserve.sampling_params import SamplingParams


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | None = None
    num_cached_tokens: int = 0
    error: str | None = None

    @property
    def bits(self) -> tuple[object, ...]:
        """What must be the same whatever surrounded the request. Equal floats are equal bits: none is zero or nan."""
        return self.token_ids, self.logprobs, self.prompt_logprobs, self.finish_reason


Answers = dict[tuple[str, int], Answer]


def make_engine(model: Decoder, **config: object) -> Engine:
    return Engine(model, EngineConfig(**config))


def make_request(request_id: str, prompt_ids: list[int], *, seed: int = 0, **params: object) -> Request:
    return Request(request_id, prompt_ids, SamplingParams(seed=seed, **params))


def run(
    engine: Engine, requests: Iterable[Request], *, each_step: Callable[[int], None] = lambda number: None
) -> Answers:
    """Add the requests, step to the end, and collect. `each_step` is called before each step with its number."""
    answers: Answers = {}
    for request in requests:
        engine.add(request)
    number = 0
    while engine.has_work():
        each_step(number)
        for output in engine.step():
            answer = answers.setdefault((output.request_id, output.choice), Answer())
            assert answer.finish_reason is None, f"{output.request_id} goes on after its end"
            answer.token_ids += output.token_ids
            answer.logprobs += output.logprobs or []
            answer.prompt_logprobs = answer.prompt_logprobs or output.prompt_logprobs
            answer.finish_reason, answer.stop_reason = output.finish_reason, output.stop_reason
            answer.num_cached_tokens, answer.error = output.num_cached_tokens, output.error
        number += 1
        assert number < 5000, "the engine does not come to an end"
    return answers
