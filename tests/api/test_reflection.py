"""A client that knows nothing of the service but its address."""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from support.fake_llm import REPLY
from support.live_server import LiveServer


@pytest.fixture(scope="module")
def channel(server: LiveServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as opened:
        yield opened


def test_the_services_are_listed(channel: grpc.Channel) -> None:
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"polyserve.v1.PolyServe", "grpc.health.v1.Health"} <= set(services)


def test_a_client_made_from_reflection_alone_can_chat(channel: grpc.Channel) -> None:
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service = pool.FindServiceByName("polyserve.v1.PolyServe")
    method = service.FindMethodByName("Chat")
    request = GetMessageClass(method.input_type)()
    request.messages.add(role="ROLE_USER", content="hi")
    request.params.max_tokens = 100
    call = channel.unary_stream(
        f"/{service.full_name}/{method.name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    assert "".join(event.delta.text for event in call(request)) == REPLY
