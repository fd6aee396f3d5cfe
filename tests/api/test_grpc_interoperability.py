"""Cases of gRPC's interoperability list that a service of unary calls and server streams can meet.

Source: https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest

from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import REPLY, FakeLLM
from support.live_server import LiveServer, wait_until

PROMPT = pb.GenerateRequest(text="hi", params=pb.SamplingParams(max_tokens=100))


def text_of(events: Iterator[pb.GenerateResponse]) -> str:
    return "".join(event.delta.text for event in events)


def test_empty_unary(stub: PolyServeStub) -> None:
    assert stub.GetModel(pb.GetModelRequest()).model == "fake"


def test_large_unary(stub: PolyServeStub) -> None:
    text = "x" * 271_828
    assert len(stub.Detokenize(pb.DetokenizeRequest(token_ids=text.encode())).text) == len(text)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_client_compressed(stub: PolyServeStub, compression: grpc.Compression) -> None:
    request = pb.DetokenizeRequest(token_ids=b"x" * 100_000)
    assert len(stub.Detokenize(request, compression=compression).text) == 100_000
    assert text_of(stub.Generate(PROMPT, compression=compression)) == REPLY


def test_server_streaming(stub: PolyServeStub) -> None:
    assert text_of(stub.Generate(PROMPT)) == REPLY


def test_cancel_after_begin(stub: PolyServeStub, llm: FakeLLM) -> None:
    llm.hold(0)
    call = stub.Generate(PROMPT)
    wait_until(lambda: len(llm.live) == 1)
    call.cancel()
    assert call.code() == grpc.StatusCode.CANCELLED
    wait_until(lambda: not llm.live and len(llm.aborted) == 1)


def test_cancel_after_first_response(stub: PolyServeStub, llm: FakeLLM) -> None:
    llm.hold(3)
    call = stub.Generate(PROMPT)
    next(call)
    call.cancel()
    with pytest.raises(grpc.RpcError):
        list(call)
    assert call.code() == grpc.StatusCode.CANCELLED
    wait_until(lambda: not llm.live and len(llm.aborted) == 1)


def test_cancelling_one_call_leaves_the_others_of_its_connection(stub: PolyServeStub, llm: FakeLLM) -> None:
    llm.hold(3)
    left, kept = stub.Generate(PROMPT), stub.Generate(PROMPT)
    next(left), next(kept)
    left.cancel()
    wait_until(lambda: len(llm.aborted) == 1)
    llm.release()
    assert text_of(kept) == REPLY


@pytest.mark.parametrize("num_tokens", [0, 2])
def test_timeout_on_sleeping_server(stub: PolyServeStub, llm: FakeLLM, num_tokens: int) -> None:
    llm.hold(num_tokens)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(PROMPT, timeout=0.2))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: not llm.live and len(llm.aborted) == 1)


def test_timeout_of_a_unary_call(stub: PolyServeStub, llm: FakeLLM) -> None:
    llm.hold(0)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Embed(pb.EmbedRequest(inputs=[pb.EmbedInput(text="hi")]), timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: not llm.live and len(llm.aborted) == 1)


def test_a_deadline_that_is_over_costs_the_engine_nothing(stub: PolyServeStub, llm: FakeLLM) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(PROMPT, timeout=-1))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not llm.seen


def test_custom_metadata(stub: PolyServeStub) -> None:
    metadata = (("x-grpc-test-echo-initial", "test"), ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab"))
    assert text_of(stub.Generate(PROMPT, metadata=metadata)) == REPLY


def test_special_status_message(stub: PolyServeStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetModel(pb.GetModelRequest(model="Unicode BMP ☺ and non-BMP 😈"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "'Unicode BMP ☺ and non-BMP 😈'" in caught.value.details()


@pytest.mark.parametrize("method", ["/polyserve.v1.PolyServe/Unknown", "/polyserve.v1.Unknown/Generate"])
def test_unimplemented_method_and_service(channel: grpc.Channel, method: str) -> None:
    call = channel.unary_unary(method)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_rpc_soak(stub: PolyServeStub, llm: FakeLLM) -> None:
    begun = time.monotonic()
    for _ in range(100):
        assert text_of(stub.Generate(PROMPT)) == REPLY
        assert time.monotonic() - begun < 60, "it hangs"
    assert not llm.live


def test_channel_soak(server: LiveServer, llm: FakeLLM) -> None:
    for _ in range(20):
        with grpc.insecure_channel(server.grpc_address) as channel:
            assert text_of(PolyServeStub(channel).Generate(PROMPT)) == REPLY


def test_server_compressed_unary(server: LiveServer, llm: FakeLLM) -> None:
    with counted(server.grpc_address) as (address, num_bytes), grpc.insecure_channel(address) as channel:
        answer = PolyServeStub(channel).Detokenize(pb.DetokenizeRequest(token_ids=b"x" * 100_000))
        assert len(answer.text) == 100_000
    assert sum(num_bytes) < 10_000


@contextmanager
def counted(address: str) -> Iterator[tuple[str, list[int]]]:
    """A way to the server that notes how many bytes come back at a time."""
    host, _, port = address.rpartition(":")
    num_bytes: list[int] = []
    with socket.create_server((host, 0)) as listener, socket.create_connection((host, int(port))) as behind:

        def carry() -> None:
            front, _ = listener.accept()
            with front:
                threading.Thread(target=_copy, args=(front, behind, []), daemon=True).start()
                _copy(behind, front, num_bytes)

        threading.Thread(target=carry, daemon=True).start()
        yield f"{host}:{listener.getsockname()[1]}", num_bytes


def _copy(source: socket.socket, target: socket.socket, num_bytes: list[int]) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            num_bytes.append(len(data))
            target.sendall(data)
