"""The engine process's turn of work, seen from the sockets of its fronts, with an engine without a model."""

from collections.abc import Iterator
from typing import cast

import msgspec
import pytest
import zmq

from polyserve.config import EngineConfig
from polyserve.engine.engine import Engine
from polyserve.request import Request
from polyserve.sampling_params import SamplingParams
from polyserve.service.core_process import CoreLoop
from polyserve.service.messages import Abort, Add, EngineMessage, FrontMessage, Hello, Outputs, Ready, Refusal
from support.fake_engine import MAX_PROMPT_LEN, FakeEngine


class Front:
    """A front's socket. In one process, so what it sends is there before the next turn."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.connect(address)

    def send(self, *messages: FrontMessage) -> None:
        for message in messages:
            self._socket.send(msgspec.msgpack.encode(message))

    def receive(self) -> EngineMessage:
        assert self._socket.poll(2000), "nothing came"
        return msgspec.msgpack.decode(self._socket.recv(), type=EngineMessage)

    def receive_outputs(self) -> Outputs:
        message = self.receive()
        assert isinstance(message, Outputs)
        return message

    def close(self) -> None:
        self._socket.close(linger=0)


class Rig:
    """A core loop that the test turns by hand, and its fronts."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(address)
        self._address = address
        self._fronts: list[Front] = []
        self.engine = FakeEngine(EngineConfig())
        self._loop = CoreLoop(cast(Engine, self.engine), self._socket)

    def turn(self) -> None:
        assert self.engine.has_work() or self._socket.poll(2000), "a turn would wait for ever"
        self._loop.turn()

    def greeted_front(self) -> Front:
        front = Front(self._context, self._address)
        self._fronts.append(front)
        front.send(Hello())
        self.turn()
        assert isinstance(front.receive(), Ready)
        assert front.receive_outputs().outputs == []
        return front

    def close(self) -> None:
        for front in self._fronts:
            front.close()
        self._socket.close(linger=0)
        self._context.term()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig("inproc://engine")
    yield rig
    rig.close()


def add(request_id: str, prompt_ids: list[int] | None = None, **params: int) -> Add:
    return Add(Request(request_id, prompt_ids or [1, 2, 3], SamplingParams(**params)))  # type: ignore[arg-type]


def test_ready_says_what_a_front_has_to_know_of_the_model(rig: Rig) -> None:
    front = rig.greeted_front()
    front.send(Hello())
    rig.turn()
    ready = front.receive()
    assert isinstance(ready, Ready)
    assert (ready.vocab_size, ready.max_model_len, ready.numerics_id, ready.eos_ids) == (256, 1000, "fake", [254])


def test_a_turn_sends_one_message_for_all_sequences(rig: Rig) -> None:
    front = rig.greeted_front()
    front.send(*(add(f"r{i}", n=2) for i in range(10)))
    rig.turn()
    outputs = front.receive_outputs()
    assert [(output.request_id, output.choice) for output in outputs.outputs] == [
        (f"r{i}", choice) for i in range(10) for choice in range(2)
    ]
    assert outputs.stats.num_running == 20


def test_an_abort_overtakes_the_addition_that_waits_with_it(rig: Rig) -> None:
    front = rig.greeted_front()
    front.send(add("r"), Abort("r"))
    rig.turn()
    assert rig.engine.num_added == 0
    assert front.receive_outputs().outputs == []


def test_nothing_is_sent_for_what_was_aborted_and_the_counts_are_those_after_it(rig: Rig) -> None:
    front = rig.greeted_front()
    front.send(add("r", n=2))
    rig.turn()
    assert len(front.receive_outputs().outputs) == 2
    front.send(Abort("r", 0))
    rig.turn()
    outputs = front.receive_outputs()
    assert [output.choice for output in outputs.outputs] == [1]
    assert outputs.stats.num_running == 1
    front.send(Abort("r"))
    rig.turn()
    outputs = front.receive_outputs()
    assert (outputs.outputs, outputs.stats.num_running) == ([], 0)


def test_every_front_hears_of_its_own_requests_and_of_every_step(rig: Rig) -> None:
    one, other = rig.greeted_front(), rig.greeted_front()
    assert one.receive_outputs().outputs == []  # the step in which the other one came
    one.send(add("r", max_tokens=1))
    rig.turn()
    assert [output.request_id for output in one.receive_outputs().outputs] == ["r"]
    assert other.receive_outputs().outputs == []


def test_what_the_engine_refuses_is_answered_with_its_reason(rig: Rig) -> None:
    front = rig.greeted_front()
    front.send(add("r", [1] * (MAX_PROMPT_LEN + 1), n=2))
    rig.turn()
    message = front.receive_outputs()
    assert message.outputs == []
    assert message.refusals == [Refusal("r", "a prompt of 501 tokens never fits", "prompt", None)]
