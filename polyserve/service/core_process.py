"""The engine as a process of its own: `python -m polyserve.service.core_process`, started and owned by a front.

Its first line of standard input says what to load and where to listen (`Start`). It binds the socket, loads the model,
and then takes turns: take every message that has come, let the aborts overtake the additions, do one step, send each
front what the step brought for it. Without work it sleeps on the socket, and also while a front is too far behind: so
what lies in the socket is bounded in this direction, as it is in the other by what the front admits.

The front decides when it ends, by closing standard input: that works while loading, in the middle of a step, and also
when the front was killed. Signals meant for the front (Ctrl-C, a service manager's SIGTERM) are ignored here.
"""

import contextlib
import faulthandler
import gc
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zmq

from polyserve.config import EngineConfig
from polyserve.errors import InvalidRequest, ModelLoadError
from polyserve.log import get_logger, set_up_logging
from polyserve.request import Request, SequenceOutput, Vocabulary
from polyserve.service.fork_server import FORK_SERVER, fork_on_demand
from polyserve.service.last_step import StepRecorder
from polyserve.service.messages import (
    MAX_UNHEARD,
    Abort,
    Add,
    EngineStats,
    Failed,
    FrontMessage,
    Heard,
    Hello,
    Outputs,
    Ready,
    Refusal,
    SetLogLevel,
    Start,
)

if TYPE_CHECKING:
    from polyserve.engine.engine import Engine

log = get_logger(__name__)

NAME = "polyserve-core"  # of an engine, for who lists processes: a fork has its server's command line
EXIT_NOT_LOADED = 2
GREETING_TIMEOUT_MS = 10_000  # how long a failed start waits for a front to tell it to
IDLE_MS = 1000  # without a message before what may be needed later is prepared


def load_engine(config: EngineConfig) -> "Engine":
    """The engine with its model. Importing torch takes long: by now the socket and the lifeline are there."""
    from polyserve.engine.engine import Engine

    return Engine.from_config(config, load_vocabulary=partial(load_vocabulary, Path(config.model)))


def load_vocabulary(path: Path) -> Vocabulary:
    """What the tokens of a model look like."""
    from polyserve.tokenizer.load import load_tokenizer

    return load_tokenizer(path).vocabulary()


def main(make_engine: Callable[[EngineConfig], "Engine"] = load_engine) -> int:
    """Serve the front at the other end of standard input until that is closed. Returns the code of a failed start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    if FORK_SERVER in sys.argv:
        fork_on_demand()
    with open(0, "rb", buffering=0, closefd=False) as lifeline:  # unbuffered: nothing is read ahead of the line
        line = lifeline.readline()
    if not line:
        return 0  # the front ended before it said anything
    start = msgspec.json.decode(line, type=Start)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(NAME)
    set_up_logging(start.log_level, start.log_format)
    threading.Thread(target=_end_with_the_front, args=(Path(start.socket),), name="lifeline", daemon=True).start()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        for option in (zmq.SNDHWM, zmq.RCVHWM):
            socket.setsockopt(option, 0)  # never drop a message; what is under way is bounded without it
        socket.bind(f"ipc://{start.socket}")
        os.chmod(start.socket, 0o600)
        began = time.monotonic()
        gc.disable()  # whatever is made while loading is here to stay: spare the collector from walking it
        try:
            engine = make_engine(start.config)
        except ModelLoadError as error:
            _report_failure(socket, error.message)
            return EXIT_NOT_LOADED
        gc.freeze()
        gc.enable()
        log.info("engine ready after %.1f s", time.monotonic() - began)
        engine.watch(StepRecorder(Path(start.socket).parent).record)
        CoreLoop(engine, socket).run()
    return 0


def _end_with_the_front(socket: Path) -> None:
    """Wait until standard input is closed, then end this process, whatever it is doing."""
    while os.read(0, 4096):
        pass
    shutil.rmtree(socket.parent, ignore_errors=True)  # a front that lives does it itself
    os._exit(0)


def _report_failure(socket: zmq.Socket[bytes], message: str) -> None:
    if socket.poll(GREETING_TIMEOUT_MS):
        front, _ = socket.recv_multipart()
        socket.send_multipart([front, msgspec.msgpack.encode(Failed(message))])


@dataclass(slots=True)
class _Live:
    """A request that the engine holds: whose it is, and which of its choices have not ended."""

    front: bytes
    choices: set[int]


class CoreLoop:
    """Carries messages between the fronts at a ROUTER socket and one engine."""

    def __init__(self, engine: "Engine", socket: zmq.Socket[bytes]) -> None:
        self._engine = engine
        self._socket = socket
        self._unheard: dict[bytes, int] = {}  # of each front
        self._live: dict[str, _Live] = {}
        self._is_warm = False
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FrontMessage] = msgspec.msgpack.Decoder(FrontMessage)

    def run(self) -> None:
        """Take turns for ever."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Take the messages that have come (wait for one if nothing can be done), do one step, send what it brought."""
        messages = self._receive(wait=not self._can_step())
        refusals = self._apply(messages)
        outputs = self._engine.step() if self._can_step() else []
        self._send(outputs, refusals)

    def _can_step(self) -> bool:
        """Whether there is work, and every front has taken in what came before."""
        return self._engine.has_work() and max(self._unheard.values(), default=0) < MAX_UNHEARD

    def _receive(self, *, wait: bool) -> list[tuple[bytes, FrontMessage]]:
        messages = []
        if wait and not self._is_warm and not self._socket.poll(IDLE_MS):
            self._is_warm = True
            self._engine.warm_up_grammars()
        if wait:
            self._socket.poll()
        with contextlib.suppress(zmq.Again):
            while True:
                front, payload = self._socket.recv_multipart(zmq.NOBLOCK)
                messages.append((front, self._decoder.decode(payload)))
        return messages

    def _apply(self, messages: list[tuple[bytes, FrontMessage]]) -> list[tuple[bytes, Refusal]]:
        """Aborts before additions: work that nobody waits for any more is never begun. Returns refusals and to whom."""
        adds: dict[str, tuple[bytes, Request]] = {}
        for front, message in messages:
            match message:
                case Hello():
                    self._unheard[front] = 0
                    self._send_ready(front)
                case Add(request):
                    adds[request.request_id] = front, request
                case Heard(num_outputs):
                    self._unheard[front] -= num_outputs
                case SetLogLevel(level):
                    set_up_logging(level)
                case Abort(request_id, choice):
                    if choice is None:
                        adds.pop(request_id, None)
                    self._engine.abort(request_id, choice)
                    self._forget(request_id, choice)
        refusals = []
        for front, request in adds.values():
            try:
                self._engine.add(request)
            except InvalidRequest as error:
                refusals.append((front, Refusal(request.request_id, error.message, error.param, error.code)))
            else:
                self._live[request.request_id] = _Live(front, set(request.answered or range(request.params.n)))
        return refusals

    def _send_ready(self, front: bytes) -> None:
        engine = self._engine
        ready = Ready(
            vocab_size=engine.vocab_size,
            hidden_size=engine.hidden_size,
            max_model_len=engine.max_model_len,
            numerics_id=engine.numerics_id,
            eos_ids=list(engine.eos_ids),
            bos_id=engine.bos_id,
            stats=self._stats(),
        )
        self._socket.send_multipart([front, self._encoder.encode(ready)])

    def _send(self, outputs: list[SequenceOutput], refusals: list[tuple[bytes, Refusal]]) -> None:
        """One message for each front, also if there is nothing for it, so that its counts are those after this turn."""
        stats = self._stats()
        messages = {front: Outputs([], [], stats) for front in self._unheard}
        for front, refusal in refusals:
            messages[front].refusals.append(refusal)
        for output in outputs:
            messages[self._live[output.request_id].front].outputs.append(output)
            if output.finish_reason is not None:
                self._forget(output.request_id, output.choice)
        for front, message in messages.items():
            self._unheard[front] += 1
            self._socket.send_multipart([front, self._encoder.encode(message)])

    def _forget(self, request_id: str, choice: int | None) -> None:
        live = self._live.get(request_id)
        if live is None:
            return
        live.choices -= {choice} if choice is not None else live.choices
        if not live.choices:
            del self._live[request_id]

    def _stats(self) -> EngineStats:
        return msgspec.convert(self._engine.stats(), EngineStats, from_attributes=True)


if __name__ == "__main__":
    sys.exit(main())
