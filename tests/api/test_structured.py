"""Structured output over both protocols: what reaches the engine, and what is refused in whose words."""

import grpc
import httpx
import pytest

from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import FakeLLM
from support.live_server import LiveServer

MESSAGES = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}, "required": ["b"]}
AS_TEXT = '{"type":"object","properties":{"b":{"type":"integer"},"a":{}},"required":["b"]}'


def chat(client: httpx.Client, **fields: object) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2, **fields})


def completion(client: httpx.Client, **fields: object) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2, **fields})


def json_schema(schema: object, **more: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


@pytest.mark.parametrize("post", [chat, completion])
@pytest.mark.parametrize(("fields", "expected"), [
    ({"response_format": {"type": "text"}}, (None, None)),
    ({"response_format": {"type": "json_object"}}, ("guided_json", '{"type":"object"}')),
    ({"response_format": json_schema(SCHEMA, strict=True)}, ("guided_json", AS_TEXT)),
    ({"response_format": json_schema(SCHEMA)}, ("guided_json", AS_TEXT)),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}}, ("guided_json", "{}")),
    ({"guided_json": SCHEMA}, ("guided_json", AS_TEXT)),
    ({"guided_json": AS_TEXT}, ("guided_json", AS_TEXT)),
    ({"guided_json": True}, ("guided_json", "true")),
    ({"guided_regex": "a+"}, ("guided_regex", "a+")),
    ({"guided_choice": ["a", "b"]}, ("guided_choice", ["a", "b"])),
    ({"guided_grammar": 'start: "a"'}, ("guided_grammar", 'start: "a"')),
])  # fmt: skip
def test_what_a_body_asks_for_reaches_the_engine(client, llm: FakeLLM, post, fields, expected):
    assert post(client, **fields).status_code == 200
    (params,) = llm.seen
    field, value = expected
    assert params.grammar_field == field
    assert field is None or getattr(params, field) == value


@pytest.mark.parametrize("post", [chat, completion])
@pytest.mark.parametrize(("fields", "param", "words"), [
    ({"response_format": json_schema({"not": {}})}, "response_format", 'the keywords ["not"] of JSON Schema'),
    ({"response_format": json_schema({"type": "sound"})}, "response_format", "sound"),
    ({"response_format": json_schema(123)}, "response_format.json_schema.schema", "must be an object"),
    ({"response_format": {"type": "sound"}}, "response_format.type", "'json_schema'"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is required there"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "one grammar"),
    ({"guided_json": "hiccup"}, "guided_json", "must be a JSON schema"),
    ({"guided_json": 3}, "guided_json", "must be a JSON schema"),
    ({"guided_regex": "("}, "guided_regex", "unclosed group"),
    ({"guided_regex": "a" * 300_000}, "guided_regex", "at most 262144 bytes"),
    ({"guided_json": {}, "min_tokens": 1}, "min_tokens", "the grammar decides"),
    ({"response_format": json_schema({}), "ignore_eos": True}, "ignore_eos", "the grammar decides"),
])  # fmt: skip
def test_what_cannot_be_followed_is_a_400_that_names_it(client, llm: FakeLLM, post, fields, param, words):
    response = post(client, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert words in error["message"]
    assert not llm.seen


@pytest.mark.parametrize(("params", "expected"), [
    (pb.SamplingParams(guided_json=AS_TEXT), ("guided_json", AS_TEXT)),
    (pb.SamplingParams(guided_regex="a+"), ("guided_regex", "a+")),
    (pb.SamplingParams(guided_choice=pb.Choices(choices=["a", "b"])), ("guided_choice", ["a", "b"])),
    (pb.SamplingParams(guided_grammar='start: "a"'), ("guided_grammar", 'start: "a"')),
])  # fmt: skip
def test_grpc_has_a_typed_field_for_each(server: LiveServer, llm: FakeLLM, params, expected):
    with grpc.insecure_channel(server.grpc_address) as channel:
        list(PolyServeStub(channel).Generate(pb.GenerateRequest(text="Hi", params=params)))
    (seen,) = llm.seen
    assert (seen.grammar_field, getattr(seen, seen.grammar_field)) == expected


def test_grpc_refuses_in_the_same_words(server: LiveServer, client: httpx.Client):
    refused = completion(client, guided_json={"not": {}}).json()["error"]["message"]
    request = pb.GenerateRequest(text="Hi", params=pb.SamplingParams(guided_json='{"not": {}}'))
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as error:
        list(PolyServeStub(channel).Generate(request))
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, refused)
