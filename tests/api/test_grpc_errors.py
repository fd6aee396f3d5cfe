"""What gRPC tells of an error is what HTTP tells: the same field, code and type."""

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from polyserve.errors import EngineDead
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import FakeLLM
from support.live_server import LiveServer

PARAMS = [
    {"temperature": -1.0},
    {"n": 0},
    {"stop": ["x"] * 40},
    {"logprobs": 21},
    {"max_tokens": 2, "min_tokens": 3},
    {"logit_bias": {300: 1.0}},
    {"cache_salt": ""},
]


def details_of(error: grpc.RpcError) -> dict[type, Message]:
    status = rpc_status.from_call(error)
    assert status is not None
    found: dict[type, Message] = {}
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
            if packed.Is(kind.DESCRIPTOR):
                found[kind] = kind()
                packed.Unpack(found[kind])
    return found


def error_of(server: LiveServer, request: pb.GenerateRequest) -> grpc.RpcError:
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(PolyServeStub(channel).Generate(request))
    return caught.value


@pytest.mark.parametrize("params", PARAMS, ids=str)
@pytest.mark.usefixtures("llm")
def test_the_field_code_and_type_are_those_of_http(server: LiveServer, client: httpx.Client, params: dict) -> None:
    error = error_of(server, pb.GenerateRequest(text="hi", params=pb.SamplingParams(**params)))
    told = client.post("/v1/completions", json={"prompt": "hi", **params}).json()["error"]
    details = details_of(error)
    info = details[error_details_pb2.ErrorInfo]
    known = {name: told[name] for name in ("type", "param", "code") if told[name] is not None}
    assert (info.reason, info.domain, dict(info.metadata)) == ("INVALID_REQUEST_ERROR", "polyserve", known)
    (violation,) = details[error_details_pb2.BadRequest].field_violations
    assert (violation.field, violation.description) == (told["param"], told["message"])
    assert error.details() == told["message"]


def test_the_reason_is_the_code_where_there_is_one(server: LiveServer, llm: FakeLLM) -> None:
    too_long = details_of(error_of(server, pb.GenerateRequest(text="x" * 500)))
    assert too_long[error_details_pb2.ErrorInfo].reason == "CONTEXT_LENGTH_EXCEEDED"
    not_served = details_of(error_of(server, pb.GenerateRequest(text="x", model="gpt-9")))
    assert not_served[error_details_pb2.ErrorInfo].reason == "MODEL_NOT_FOUND"


def test_an_error_that_is_no_fields_fault_has_no_violation(server: LiveServer, llm: FakeLLM) -> None:
    llm.fail(1, EngineDead("it ended"))
    details = details_of(error_of(server, pb.GenerateRequest(text="x")))
    assert details.keys() == {error_details_pb2.ErrorInfo}
    assert details[error_details_pb2.ErrorInfo].reason == "SERVICE_UNAVAILABLE_ERROR"
