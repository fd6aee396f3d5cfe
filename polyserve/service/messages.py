"""What the front and the engine process say to each other: msgspec structs in msgpack over ZeroMQ, one message per step for all sequences.

Front to engine   Add, Abort, Shutdown        Engine to front   Ready, Failed, Outputs
Each message of the front carries its client's id (the ZeroMQ identity), so that several fronts can share an engine later.
"""

import msgspec

from polyserve.request import Request, SequenceOutput


class Add(msgspec.Struct, frozen=True, tag=True):
    request: Request


class Abort(msgspec.Struct, frozen=True, tag=True):
    """End one choice of a request, or all of them. Overtakes every Add that waits. Unknown ids are ignored: they have just ended."""

    request_id: str
    choice: int | None = None


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    pass


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine can serve. What the front has to know of the model, since it never imports torch."""

    vocab_size: int
    max_model_len: int
    numerics_id: str
    eos_ids: list[int]
    bos_id: int | None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The model could not be loaded; the engine process exits after this."""

    message: str


class EngineStats(msgspec.Struct, frozen=True):
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    num_preemptions: int  # since the start
    prefix_query_tokens: int  # since the start
    prefix_hit_tokens: int  # since the start


class Outputs(msgspec.Struct, frozen=True, tag=True):
    outputs: list[SequenceOutput]
    stats: EngineStats


FrontMessage = Add | Abort | Shutdown
EngineMessage = Ready | Failed | Outputs
