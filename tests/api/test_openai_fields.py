"""Every documented field through the `openai` package, and every answer and event held to its published types."""

import json
from typing import Any

import openai
import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import openai.types.embedding_create_params as embedding_params
import pytest
from openai.types.chat import ChatCompletion

from polyserve.api.http.answers import ChatCompletion as OurChatCompletion
from polyserve.api.http.answers import ChatCompletionChunk as OurChunk
from polyserve.api.http.answers import Completion as OurCompletion
from support.fake_llm import FakeLLM
from support.openai_types import validated, validated_events

CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
COMPLETION: dict[str, Any] = {"model": "fake", "prompt": "hi", "max_tokens": 5}
OURS = {"chat.completion": OurChatCompletion, "chat.completion.chunk": OurChunk, "text_completion": OurCompletion}

COMMON = [
    {"frequency_penalty": 0.5},
    {"logit_bias": {"5": -1}},
    {"max_tokens": 3},
    {"n": 3},
    {"presence_penalty": 0.5},
    {"seed": 5},
    {"stop": "aus"},
    {"stop": ["x", "üß", "y", "z"]},
    {"stream_options": {"include_usage": True}, "stream": True},
    {"stream_options": {"include_obfuscation": False}, "stream": True},
    {"temperature": 0.5},
    {"top_p": 0.5},
    {"user": "ann"},
    {"extra_body": {"return_token_ids": True, "prompt_logprobs": 2, "top_k": 3, "stop_token_ids": [117]}},
]
CHAT_FIELDS = [
    *COMMON,
    {"function_call": "none"},
    {"functions": []},
    {"logprobs": True, "top_logprobs": 3, "n": 2},
    {"max_completion_tokens": 4},
    {"metadata": {"run": "7"}},
    {"modalities": ["text"]},
    {"parallel_tool_calls": True},
    {"prompt_cache_key": "k"},
    {"prompt_cache_retention": "in_memory"},
    {"reasoning_effort": "none"},
    {"response_format": {"type": "text"}},
    {"safety_identifier": "s"},
    {"service_tier": "flex"},
    {"store": False},
    {"tool_choice": "none"},
    {"tools": []},
    {"verbosity": "medium"},
]
COMPLETION_FIELDS = [
    *COMMON,
    {"best_of": 1},
    {"echo": True},
    {"echo": True, "logprobs": 2, "prompt": ["a", "bc"], "n": 2},
    {"logprobs": 3},
    {"prompt": [5, 6]},
    {"prompt": [[5], [6, 7]]},
]
CHAT_REFUSALS = {
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {"mode": "explicit"},
    "reasoning_effort": "high",
    "verbosity": "high",
    "web_search_options": {},
}


@pytest.fixture
def client(openai_client: openai.OpenAI, llm: FakeLLM) -> openai.OpenAI:
    return openai_client


def check(data: bytes, *, streamed: bool) -> None:
    """Hold an answer to OpenAI's types, and to our own, which `/openapi.json` shows."""
    if not streamed:
        validated(data)
        OURS[json.loads(data)["object"]].model_validate_json(data, strict=True)
        return
    assert validated_events(data)
    for event in data.decode().split("\n\n")[:-2]:
        value = json.loads(event.removeprefix("data: "))
        OURS[value["object"]].model_validate(value, strict=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", CHAT_FIELDS, ids=str)
def test_every_chat_answer_is_of_openais_types(client: openai.OpenAI, fields: dict, stream: bool) -> None:
    if fields.get("stream") and not stream:
        return
    body = {**CHAT, **fields, "stream": stream}
    if "max_completion_tokens" in fields:
        del body["max_tokens"]
    check(client.chat.completions.with_raw_response.create(**body).http_response.read(), streamed=stream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", COMPLETION_FIELDS, ids=str)
def test_every_completion_is_of_openais_types(client: openai.OpenAI, fields: dict, stream: bool) -> None:
    if fields.get("stream") and not stream:
        return
    body = {**COMPLETION, **fields, "stream": stream}
    check(client.completions.with_raw_response.create(**body).http_response.read(), streamed=stream)


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "hi"},
        {"input": ["a", "b"], "dimensions": 3, "user": "ann"},
        {"input": [1, 2]},
        {"input": [[1], [2, 3]], "encoding_format": "float"},
    ],
    ids=str,
)
def test_every_embedding_is_of_openais_types(client: openai.OpenAI, fields: dict) -> None:
    answer = client.embeddings.with_raw_response.create(model="fake", **{"encoding_format": "float", **fields})
    validated(answer.http_response.read())


def test_models_are_of_openais_type(client: openai.OpenAI) -> None:
    validated(client.models.with_raw_response.retrieve("fake").http_response.read())
    listed = json.loads(client.models.with_raw_response.list().http_response.read())
    assert (listed["object"], listed.keys()) == ("list", {"object", "data"})
    for model in listed["data"]:
        validated(json.dumps(model))


@pytest.mark.parametrize(("name", "value"), CHAT_REFUSALS.items())
def test_what_is_not_here_is_refused_by_name(client: openai.OpenAI, llm: FakeLLM, name: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**CHAT, **{name: value})
    assert caught.value.param == name
    assert name in caught.value.message
    assert not llm.seen


def test_no_documented_field_is_left_out_here() -> None:
    asked = {name for fields in CHAT_FIELDS for name in fields} | CHAT.keys() | CHAT_REFUSALS.keys()
    assert chat_params.CompletionCreateParamsBase.__annotations__.keys() <= asked
    asked = {name for fields in COMPLETION_FIELDS for name in fields} | COMPLETION.keys() | {"suffix"}
    assert completion_params.CompletionCreateParamsBase.__annotations__.keys() <= asked
    assert set(embedding_params.EmbeddingCreateParams.__annotations__) == {
        "input", "model", "dimensions", "encoding_format", "user"
    }  # fmt: skip


def test_the_check_itself_can_fail(client: openai.OpenAI) -> None:
    data = json.loads(client.chat.completions.with_raw_response.create(**CHAT).http_response.read())
    for spoilt in ({**data, "colour": 1}, {**data, "created": "now"}, {**data, "choices": [{}]}):
        with pytest.raises(ValueError, match="validation error"):
            validated(json.dumps(spoilt), ChatCompletion)
