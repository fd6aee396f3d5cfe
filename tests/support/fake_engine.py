"""An engine without a model, for tests of what lies around one; as a program (`COMMAND`), an engine process.

Choice c answers with the prompt, over and over, from the prompt's c-th token on. Some prompts and models are special:
    a prompt that begins with POISON kills the process in its first step, one that begins with ENDLESS never gets out of
    it, one that begins with HOPELESS is given up, one of more than MAX_PROMPT_LEN tokens is refused by `add`
    what a request with pooling gets is its prompt, as numbers
    the model "damaged" cannot be loaded, "broken" fails while loading, "slow" takes a minute to load
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from polyserve.config import EngineConfig
from polyserve.errors import InvalidRequest, ModelLoadError
from polyserve.request import FinishReason, Request, SequenceOutput, TokenLogprob
from polyserve.service.core_process import main
from polyserve.service.messages import EngineStats

if TYPE_CHECKING:
    from polyserve.engine.engine import Engine

COMMAND = (sys.executable, __file__)
POISON = 255
EOS = 254
HOPELESS = 253
ENDLESS = 252
MAX_PROMPT_LEN = 500
STEP_S = 0.001


@dataclass(slots=True)
class _Sequence:
    request: Request
    choice: int
    answer: list[int] = field(default_factory=list)


class FakeEngine:
    vocab_size = 256
    hidden_size = 8
    max_model_len = 1000
    numerics_id = "fake"
    eos_ids = (EOS,)
    bos_id = None

    def __init__(self, config: EngineConfig) -> None:
        if config.model == "damaged":
            raise ModelLoadError("damaged: there is nothing in it")
        if config.model == "broken":
            raise RuntimeError("a fault of ours")
        if config.model == "slow":
            time.sleep(60)
        self._sequences: list[_Sequence] = []
        self._notice: Callable[[set[str]], None] = lambda request_ids: None
        self.num_added = 0

    def add(self, request: Request) -> None:
        if len(request.prompt_ids) > MAX_PROMPT_LEN:
            raise InvalidRequest(f"a prompt of {len(request.prompt_ids)} tokens never fits", param="prompt")
        self.num_added += 1
        answered: dict[int, list[int]] = request.answered or {choice: [] for choice in range(request.params.n)}
        self._sequences += [_Sequence(request, choice, answer) for choice, answer in answered.items()]

    def abort(self, request_id: str, choice: int | None = None) -> None:
        self._sequences = [
            sequence
            for sequence in self._sequences
            if sequence.request.request_id != request_id or choice not in (None, sequence.choice)
        ]

    def watch(self, notice: Callable[[set[str]], None]) -> None:
        self._notice = notice

    def has_work(self) -> bool:
        return bool(self._sequences)

    def step(self) -> list[SequenceOutput]:
        time.sleep(STEP_S)
        self._notice({sequence.request.request_id for sequence in self._sequences})
        outputs = [_next_output(sequence) for sequence in self._sequences]
        ended = {(output.request_id, output.choice) for output in outputs if output.finish_reason is not None}
        self._sequences = [s for s in self._sequences if (s.request.request_id, s.choice) not in ended]
        return outputs

    def warm_up_grammars(self) -> None:
        """It has none."""

    def stats(self) -> EngineStats:
        return EngineStats(len(self._sequences), 0, 0, 0, 0, 0, 0)


def _next_output(sequence: _Sequence) -> SequenceOutput:
    request, params = sequence.request, sequence.request.params
    if request.prompt_ids[0] == POISON:
        os.kill(os.getpid(), signal.SIGSEGV)
    if request.prompt_ids[0] == ENDLESS:
        time.sleep(60)
    if request.prompt_ids[0] == HOPELESS:
        return SequenceOutput(request.request_id, sequence.choice, [], finish_reason="error", error="it gave up")
    if request.pooling is not None:
        pooled = [float(token_id) for token_id in request.prompt_ids]
        return SequenceOutput(request.request_id, 0, [], finish_reason="length", pooled=pooled)
    token_id = request.prompt_ids[(len(sequence.answer) + sequence.choice) % len(request.prompt_ids)]
    sequence.answer.append(token_id)
    reason: FinishReason | None = "length" if len(sequence.answer) == params.max_tokens else None
    first = len(sequence.answer) == 1
    wants_prompt = first and sequence.choice == 0 and params.prompt_logprobs is not None
    return SequenceOutput(
        request.request_id,
        sequence.choice,
        [token_id],
        logprobs=None if params.logprobs is None else [TokenLogprob(token_id, -1.0)],
        finish_reason="stop" if token_id == EOS else reason,
        prompt_logprobs=[None, *(TokenLogprob(t, -1.0) for t in request.prompt_ids[1:])] if wants_prompt else None,
        num_cached_tokens=3 if first else 0,
    )


if __name__ == "__main__":
    sys.exit(main(lambda config: cast("Engine", FakeEngine(config))))
