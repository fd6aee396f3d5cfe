"""What the front and the engine process say to each other: msgspec structs, in msgpack over ZeroMQ.

Front to engine   Start (JSON, the first line of standard input), then over the socket Hello, Add, Abort,
                  Heard, SetLogLevel
Engine to front   Ready or Failed, as the answer to Hello, then Outputs: one message a turn for all sequences
A front is known by its ZeroMQ identity, which comes with each of its messages, so that several can share an engine.
There is no message for the end: the engine ends when its standard input does.
"""

import msgspec

from polyserve.config import EngineConfig
from polyserve.request import Request, SequenceOutput

MAX_UNHEARD = 256  # Outputs between the engine and a front that have not been taken in
HEARD_EVERY = 32


class Start(msgspec.Struct, frozen=True):
    config: EngineConfig
    socket: str  # path of the Unix socket that the engine makes, in a folder that only this user can enter
    log_level: str
    log_format: str


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A front is there and waits for Ready. From now on it also hears of steps that brought nothing for it."""


class Add(msgspec.Struct, frozen=True, tag=True):
    request: Request


class Abort(msgspec.Struct, frozen=True, tag=True):
    """End one choice of a request, or all of them. Overtakes every Add that waits; nothing more is sent for it.

    Unknown ids are ignored: they have just ended.
    """

    request_id: str
    choice: int | None = None


class Heard(msgspec.Struct, frozen=True, tag=True):
    """So many more Outputs have been taken in. The engine waits for a front that is MAX_UNHEARD of them behind.

    Like every message it is answered with Outputs, so that a front can ask whether the engine is well.
    """

    num_outputs: int


class SetLogLevel(msgspec.Struct, frozen=True, tag=True):
    level: str


class EngineStats(msgspec.Struct, frozen=True):
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    num_preemptions: int  # since the start
    prefix_query_tokens: int  # since the start
    prefix_hit_tokens: int  # since the start
    num_steps: int = 0  # and what they computed and took, since the start
    step_tokens: int = 0
    step_seconds: float = 0.0
    step_predicted_seconds: float = 0.0


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine can serve. What the front has to know of the model, since it never imports torch."""

    vocab_size: int
    hidden_size: int
    max_model_len: int
    numerics_id: str
    eos_ids: list[int]
    bos_id: int | None
    stats: EngineStats


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The model could not be loaded; the engine process exits after this."""

    message: str


class Refusal(msgspec.Struct, frozen=True):
    """A request that the engine did not take in: the InvalidRequest that it raised."""

    request_id: str
    message: str
    param: str | None
    code: str | None


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """What one turn of the engine brought for one front, and the counts after it."""

    outputs: list[SequenceOutput]
    refusals: list[Refusal]
    stats: EngineStats


class Verdict(msgspec.Struct, frozen=True):
    """What `grammar_process` finds: why a grammar cannot be followed, as an InvalidRequest would say it, or nothing."""

    message: str | None = None


FrontMessage = Hello | Add | Abort | Heard | SetLogLevel
EngineMessage = Ready | Failed | Outputs
