"""A client that knows nothing of the service but its address."""

from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from support.fake_llm import REPLY
from support.live_server import live_server


def test_the_services_are_listed(channel: grpc.Channel) -> None:
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"polyserve.v1.PolyServe", "grpc.health.v1.Health"} <= set(services)


def test_a_client_made_from_reflection_alone_can_call_every_method(tmp_path: Path) -> None:
    with live_server(store_path=tmp_path / "store") as server, grpc.insecure_channel(server.grpc_address) as channel:
        client = ReflectedClient(channel)
        chat = client.call("Chat", messages=[{"role": "ROLE_USER", "content": "hi"}], store=True, metadata={"a": "b"})
        assert "".join(event.delta.text for event in chat) == REPLY
        kept = chat[0].request_id
        answers = {
            "Generate": client.call("Generate", text="hi", params={"max_tokens": 2}),
            "Embed": client.call("Embed", inputs=[{"text": "hi"}], pooling="POOLING_MEAN"),
            "Score": client.call("Score", inputs=[{"context": "a", "continuation": "b"}]),
            "Tokenize": client.call("Tokenize", text="hi"),
            "Detokenize": client.call("Detokenize", token_ids=[104, 105]),
            "GetModel": client.call("GetModel"),
            "GetStoredCompletion": client.call("GetStoredCompletion", id=kept),
            "ListStoredCompletions": client.call("ListStoredCompletions", metadata={"a": "b"}, page={"limit": 1}),
            "ListStoredMessages": client.call("ListStoredMessages", id=kept),
            "UpdateStoredCompletion": client.call("UpdateStoredCompletion", id=kept, metadata={"c": "d"}),
            "DeleteStoredCompletion": client.call("DeleteStoredCompletion", id=kept),
        }
        assert {"Chat", *answers} == client.methods
        assert all(answers.values())
        assert answers["Detokenize"][0].text == "hi"
        assert answers["ListStoredCompletions"][0].completions[0].id == kept
        assert dict(answers["UpdateStoredCompletion"][0].metadata) == {"c": "d"}


class ReflectedClient:
    """Calls methods by name with fields in JSON's shape; every type comes from the server."""

    def __init__(self, channel: grpc.Channel) -> None:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        self._channel = channel
        self._service = pool.FindServiceByName("polyserve.v1.PolyServe")
        self.methods = {method.name for method in self._service.methods}

    def call(self, name: str, **fields: object) -> list[Any]:
        """The answers, of which a unary method has one."""
        method = self._service.FindMethodByName(name)
        kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        request = ParseDict(fields, GetMessageClass(method.input_type)())
        call = kind(
            f"/{self._service.full_name}/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return list(call(request)) if method.server_streaming else [call(request)]
