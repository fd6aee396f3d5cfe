"""`store: true`, and what can be done with what it keeps, over HTTP and gRPC."""

import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import openai
import pytest

from polyserve.api.keys import KeyRing, new_key
from polyserve.api.protection import Protection
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import REPLY
from support.live_server import STORE_LIMIT, LiveServer, live_server, wait_until

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}


@pytest.fixture
def storing(tmp_path: Path) -> Iterator[LiveServer]:
    with live_server(store_path=tmp_path / "completions.sqlite") as server:
        yield server


@pytest.fixture
def client(storing: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{storing.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def kept(client: openai.OpenAI, *messages: dict, **fields: object) -> str:
    """The id of a new stored completion."""
    return client.chat.completions.create(model="fake", messages=messages or [USER], store=True, **fields).id


def test_a_kept_completion_is_what_was_answered(client: openai.OpenAI) -> None:
    options = {"n": 2, "max_tokens": 9, "metadata": {"run": "7"}, "service_tier": "flex"}
    answered = client.chat.completions.create(model="fake", messages=[USER], store=True, **options)
    assert client.chat.completions.retrieve(answered.id) == answered


def test_calls_of_an_answer_are_kept(client: openai.OpenAI, storing: LiveServer) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    storing.llm.reply = '{"name": "weather", "parameters": {"city": "Köln"}}'
    options = {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "weather"}}, "store": True}
    answered = client.chat.completions.create(model="fake", messages=[USER], **options)
    assert answered.choices[0].message.tool_calls
    found = client.chat.completions.retrieve(answered.id)
    assert found.choices[0].message == answered.choices[0].message


def test_a_streamed_answer_is_kept_when_it_is_complete(client: openai.OpenAI, storing: LiveServer) -> None:
    [first, *_] = client.chat.completions.create(model="fake", messages=[USER], store=True, stream=True)
    assert client.chat.completions.retrieve(first.id).choices[0].message.content == REPLY
    storing.llm.hold(3)
    stream = client.chat.completions.create(model="fake", messages=[USER], store=True, stream=True)
    left = next(stream)
    stream.close()
    wait_until(lambda: len(storing.llm.aborted) == 1)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(left.id)


def test_only_what_asks_for_it_is_kept(client: openai.OpenAI) -> None:
    for store in (False, None):
        client.chat.completions.create(model="fake", messages=[USER], store=store)
    assert client.chat.completions.list().data == []


def test_the_list_goes_on_page_by_page_in_either_order(client: openai.OpenAI) -> None:
    ids = [kept(client) for _ in range(5)]
    page = client.chat.completions.list(limit=2)
    assert ([item.id for item in page.data], page.has_more) == (ids[:2], True)
    assert [item.id for item in client.chat.completions.list(limit=2)] == ids  # the client fetches all pages
    assert [item.id for item in client.chat.completions.list(order="desc", limit=3)] == ids[::-1]


def test_the_list_is_filtered_by_metadata_and_model(client: openai.OpenAI) -> None:
    first = kept(client, metadata={"run": "1", 'a "b"]': "x"})
    second = kept(client, metadata={"run": "2", "a": "x"})
    found = client.chat.completions.list
    assert [item.id for item in found(metadata={"run": "2"})] == [second]
    assert [item.id for item in found(metadata={'a "b"]': "x", "run": "1"})] == [first]
    assert list(found(metadata={"run": "1", "a": "x"})) == []
    assert [item.id for item in found(model="fake")] == [first, second]
    assert list(found(model="other")) == []


def test_metadata_can_be_replaced(client: openai.OpenAI) -> None:
    completion_id = kept(client, metadata={"run": "1"})
    assert client.chat.completions.update(completion_id, metadata={"state": "done"}).metadata == {"state": "done"}
    assert [item.id for item in client.chat.completions.list(metadata={"state": "done"})] == [completion_id]
    assert list(client.chat.completions.list(metadata={"run": "1"})) == []
    assert client.chat.completions.update(completion_id, metadata=None).metadata == {}


def test_a_deleted_completion_is_gone(client: openai.OpenAI) -> None:
    completion_id = kept(client, metadata={"run": "1"})
    deleted = client.chat.completions.delete(completion_id)
    assert (deleted.id, deleted.deleted, deleted.object) == (completion_id, True, "chat.completion.deleted")
    assert list(client.chat.completions.list(metadata={"run": "1"})) == []
    for call in (client.chat.completions.retrieve, client.chat.completions.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(completion_id)
        assert caught.value.code == "completion_not_found"


def test_its_messages_are_those_that_were_sent(client: openai.OpenAI) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "c"},
    ]
    completion_id = kept(client, *messages)
    found = list(client.chat.completions.messages.list(completion_id, limit=3))
    assert [message.id for message in found] == [f"{completion_id}-{index}" for index in range(4)]
    assert [(message.role, message.content) for message in found[:2]] == [("developer", "be kind"), ("user", "hi")]
    assert found[2].tool_calls[0].function.name == "f"
    newest = client.chat.completions.messages.list(completion_id, order="desc", limit=1).data
    assert [message.role for message in newest] == ["tool"]


def test_the_oldest_go_when_there_are_too_many(client: openai.OpenAI) -> None:
    ids = [kept(client, metadata={"run": str(number)}) for number in range(STORE_LIMIT + 2)]
    assert [item.id for item in client.chat.completions.list(limit=100)] == ids[2:]
    assert list(client.chat.completions.list(metadata={"run": "0"})) == []


def test_completions_outlive_the_server_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "completions.sqlite"
    with live_server(store_path=path) as server:
        completion_id = httpx.post(f"{server.url}{PATH}", json={"messages": [USER], "store": True}).json()["id"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with live_server(store_path=path) as server:
        assert httpx.get(f"{server.url}{PATH}/{completion_id}").json()["choices"][0]["message"]["content"] == REPLY


def test_a_completion_belongs_to_the_key_that_made_it(tmp_path: Path) -> None:
    (ann_key, ann_entry), (bob_key, bob_entry) = new_key("ann"), new_key("bob")
    with live_server(protection=Protection(KeyRing([ann_entry, bob_entry])), store_path=tmp_path / "store") as server:
        ann, bob = ({"authorization": f"Bearer {key}"} for key in (ann_key, bob_key))
        url = f"{server.url}{PATH}"
        completion_id = httpx.post(url, json={"messages": [USER], "store": True}, headers=ann).json()["id"]
        assert httpx.get(f"{url}/{completion_id}", headers=ann).status_code == 200
        assert httpx.get(f"{url}/{completion_id}", headers=bob).status_code == 404
        assert httpx.delete(f"{url}/{completion_id}", headers=bob).status_code == 404
        assert httpx.get(url, headers=bob).json()["data"] == []


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        ("limit=0", "limit", "at most 100, got 0"),
        ("limit=101", "limit", "at most 100, got 101"),
        ("limit=x", "limit", "a whole number, got 'x'"),
        ("order=up", "order", "'asc' or 'desc', got 'up'"),
        ("limit=1&limit=2", "limit", "given twice"),
        ("colour=red", "colour", "no parameter"),
        ("metadata=red", "metadata", "no parameter"),
    ],
)
def test_a_wrong_query_is_refused_by_name(storing: LiveServer, query: str, field: str, words: str) -> None:
    response = httpx.get(f"{storing.url}{PATH}?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    assert words in response.json()["error"]["message"]


def test_a_place_behind_nothing_is_not_found(storing: LiveServer) -> None:
    assert httpx.get(f"{storing.url}{PATH}?after=x").status_code == 404


@pytest.mark.parametrize("path", [PATH, f"{PATH}/x", f"{PATH}/x/messages"])
def test_without_a_store_there_is_nothing_to_find(server: LiveServer, path: str) -> None:
    response = httpx.get(f"{server.url}{path}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_stored")


def test_grpc_keeps_and_finds_the_same(storing: LiveServer) -> None:
    message = pb.ChatMessage(role=pb.ChatMessage.ROLE_USER, content="hi")
    with grpc.insecure_channel(storing.grpc_address) as channel:
        stub = PolyServeStub(channel)
        ask = pb.ChatRequest(messages=[message], store=True, metadata={"run": "7"})
        first, second = ({event.request_id for event in stub.Chat(ask)}.pop() for _ in range(2))
        one = stub.GetStoredCompletion(pb.GetStoredCompletionRequest(id=first))
        assert (one.choices[0].content, one.choices[0].finish_reason) == (REPLY, pb.FINISH_REASON_STOP)
        assert (one.system_fingerprint, dict(one.metadata)) == ("fake-numerics", {"run": "7"})
        over_http = httpx.get(f"{storing.url}{PATH}/{first}").json()
        assert over_http["usage"]["completion_tokens"] == one.usage.completion_tokens

        def listed(**fields: object) -> list[str]:
            return [c.id for c in stub.ListStoredCompletions(pb.ListStoredCompletionsRequest(**fields)).completions]

        assert listed(metadata={"run": "7"}) == [first, second]
        assert listed(page=pb.Page(order=pb.Page.ORDER_DESC, limit=1)) == [second]
        assert listed(page=pb.Page(after=first)) == [second]
        stub.UpdateStoredCompletion(pb.UpdateStoredCompletionRequest(id=first, metadata={"state": "done"}))
        assert listed(metadata={"state": "done"}) == [first]
        (stored,) = stub.ListStoredMessages(pb.ListStoredMessagesRequest(id=first)).messages
        assert (stored.id, stored.message) == (f"{first}-0", message)
        stub.DeleteStoredCompletion(pb.DeleteStoredCompletionRequest(id=first))
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetStoredCompletion(pb.GetStoredCompletionRequest(id=first))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
