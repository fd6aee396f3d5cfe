"""Calls of functions over both protocols: what the template and the engine are told, and how answers carry calls."""

import json
from collections.abc import Iterator

import grpc
import httpx
import pytest

from polyserve.tools.formats import FORMATS
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import CHAT_TEMPLATE, FakeLLM
from support.live_server import LiveServer, events_of, live_server

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {{ tool.function.description }};{% endfor %}"
    "{% if tools %}<tool_call>{% endif %}" + CHAT_TEMPLATE
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def function(name: str, **more: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, **more}}


WEATHER = function("get_weather", description="Look out", parameters=PARAMETERS)
TIME = function("get_time")
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "京"}}\n</tool_call>'
TWO = f'Look: {CALL}\n<tool_call>\n{{"name": "get_time", "arguments": {{}}}}\n</tool_call>'


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(lambda: FakeLLM(chat_template=TEMPLATE)) as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[LiveServer]:
    """A model whose template tells nothing of calls."""
    with live_server() as running:
        yield running


def chat(client: httpx.Client, **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [WEATHER, TIME], **fields}
    return client.post("/v1/chat/completions", json=body)


def calls_of(message: dict) -> list[tuple[str, str]]:
    calls = message["tool_calls"]
    assert len({call["id"] for call in calls}) == len(calls)
    assert {call["type"] for call in calls} == {"function"}
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def test_a_message_of_calls_has_no_content(client, llm):
    llm.reply = CALL
    (choice,) = chat(client).json()["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert calls_of(choice["message"]) == [("get_weather", '{"city": "京"}')]


def test_text_before_calls_is_content(client, llm):
    llm.reply = TWO
    (choice,) = chat(client).json()["choices"]
    assert choice["message"]["content"] == "Look:"
    assert calls_of(choice["message"]) == [("get_weather", '{"city": "京"}'), ("get_time", "{}")]


def test_a_message_without_calls_ends_as_ever(client, llm):
    llm.reply = "I need no <tool_call> for that."
    (choice,) = chat(client).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {"role": "assistant", "content": llm.reply, "refusal": None}


def test_a_call_that_is_cut_ends_with_length(client, llm):
    llm.reply = CALL
    (choice,) = chat(client, max_tokens=57).json()["choices"]
    assert choice["finish_reason"] == "length"
    ((name, arguments),) = calls_of(choice["message"])
    assert name == "get_weather"
    assert '{"city": "京"}'.startswith(arguments)


def test_streamed_calls_join_to_the_same(client, llm):
    llm.reply = TWO
    chunks = [event for event in events_of(chat(client, stream=True)) if event != "[DONE]"]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Look:"
    pieces = [call for delta in deltas for call in delta.get("tool_calls", ())]
    heads = [piece for piece in pieces if "id" in piece]
    assert [(head["index"], head["type"], head["function"]["name"]) for head in heads] == [
        (0, "function", "get_weather"),
        (1, "function", "get_time"),
    ]
    for index, expected in enumerate(['{"city": "京"}', "{}"]):
        assert "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == index) == expected
    assert sum(piece["index"] == 0 for piece in pieces) > 5
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]][-1] == "tool_calls"


def test_the_template_is_shown_all_functions(client, llm):
    prompts = [
        chat(client, return_token_ids=True, tool_choice=choice).json() for choice in ("auto", "required", "none")
    ]
    texts = [llm.tokenizer.decode(prompt["prompt_token_ids"]) for prompt in prompts]
    assert [("get_weather" in text, "Look out" in text, "get_time" in text) for text in texts] == [
        (True,) * 3,
        (True,) * 3,
        (False,) * 3,
    ]


@pytest.mark.parametrize(("fields", "param", "words"), [
    ({"tool_choice": "any"}, "tool_choice", "must be 'none', 'auto', 'required'"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice", "'other'"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "another function"),
    ({"tools": [function("a b")]}, "tools[0].function.name", "characters"),
    ({"tools": [TIME] * 129}, "tools", "at most 128"),
    ({"tools": [{**TIME, "extra": 1}]}, "tools[0].extra", "not a field"),
    ({"tools": [function("f", strict=True, parameters={"not": {}})]}, "tools", '"not"'),
    ({"tools": [function("f", parameters={"type": "wrong"})]}, "tools", "wrong"),
    ({"guided_regex": "a"}, "guided_regex", "cannot go with tools"),
    ({"min_tokens": 3}, "min_tokens", "grammar"),
])  # fmt: skip
def test_what_cannot_be_called_is_refused_by_name(client, llm, fields, param, words):
    response = chat(client, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert words in error["message"]
    assert not llm.seen


def test_a_keyword_that_cannot_be_followed_is_left_out_unless_the_function_is_strict(client, llm):
    parameters = {**PARAMETERS, "not": {}}
    assert chat(client, tools=[function("f", parameters=parameters)]).is_success


def test_a_schema_for_the_answer_goes_along(client, llm):
    llm.reply = CALL
    assert chat(client, response_format={"type": "json_object"}).json()["choices"][0]["finish_reason"] == "tool_calls"
    assert "content: %json" in llm.seen[0].guided_grammar


def test_a_model_that_is_not_known_to_call_can_be_made_to(plain):
    with httpx.Client(base_url=plain.url) as client:
        refused = chat(client)
        plain.llm.reply = '{"name": "get_time", "parameters": {}}'
        forced = chat(client, tool_choice="required").json()["choices"][0]
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")
    assert "--tool-call-parser" in refused.json()["error"]["message"]
    assert calls_of(forced["message"]) == [("get_time", "{}")]


def test_grpc_carries_the_same(server: LiveServer, client, llm):
    llm.reply = TWO
    tools = [
        pb.Tool(name="get_weather", description="Look out", parameters=json.dumps(PARAMETERS)),
        pb.Tool(name="get_time"),
    ]
    messages = [pb.ChatMessage(role=pb.ChatMessage.ROLE_USER, content="Hi")]
    with grpc.insecure_channel(server.grpc_address) as channel:
        events = list(PolyServeStub(channel).Chat(pb.ChatRequest(messages=messages, tools=tools)))
    chat(client)
    assert llm.seen[0] == llm.seen[1]
    deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
    assert "".join(delta.text for delta in deltas) == "Look:"
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert [call.name for call in calls if call.HasField("name")] == ["get_weather", "get_time"]
    assert "".join(call.arguments for call in calls if call.index == 0) == '{"city": "京"}'
    assert deltas[-1].finish_reason == pb.FINISH_REASON_TOOL_CALLS


@pytest.mark.parametrize(("choice", "words"), [
    ({"mode": pb.ToolChoice.MODE_REQUIRED}, "start: calls"),
    ({"function": "get_time"}, "call_0"),
])  # fmt: skip
def test_grpc_has_every_choice(server: LiveServer, llm, choice, words):
    request = pb.ChatRequest(
        messages=[pb.ChatMessage(role=pb.ChatMessage.ROLE_USER, content="Hi")],
        tools=[pb.Tool(name="get_time")],
        tool_choice=pb.ToolChoice(**choice),
    )
    with grpc.insecure_channel(server.grpc_address) as channel:
        list(PolyServeStub(channel).Chat(request))
    assert words in llm.seen[0].guided_grammar


def test_every_format_can_be_named_on_the_command_line():
    from polyserve.config import TOOL_CALL_PARSERS

    assert ("auto", "none", *FORMATS) == TOOL_CALL_PARSERS
