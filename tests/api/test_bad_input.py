"""Whatever is wrong with a request is a 4xx that names the field, what was wanted, what came. The engine sees none."""

import httpx
import pytest

from polyserve.api.limits import Limits
from support.fake_llm import FakeLLM

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USER = {"role": "user", "content": "hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def error_of(response: httpx.Response, status: int = 400) -> dict:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


# what is added to a good chat request -> the field that the error names, and words of its message
CHAT_FAULTS = [
    ({"temperature": "hot"}, "temperature", "must be a number, got 'hot'"),
    ({"temperature": True}, "temperature", "must be a number, got true"),
    ({"temperature": -0.1}, "temperature", "must be at least 0 and at most 100, got -0.1"),
    ({"top_p": 0}, "top_p", "more than 0"),
    ({"top_k": 1.5}, "top_k", "must be a whole number, got 1.5"),
    ({"n": 0}, "n", "at least 1"),
    ({"n": 10**9}, "n", "got 1000000000"),
    ({"n": 2**63}, "n", "at most 128"),
    ({"n": "2"}, "n", "must be a whole number, got '2'"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "max_completion_tokens must be at least 0"),
    ({"max_tokens": 2, "min_tokens": 3}, "min_tokens", "at most max_tokens (2), got 3"),
    ({"seed": 2**64}, "seed", "must be a whole number"),
    ({"seed": 2**63}, "seed", "at most 9223372036854775807"),
    ({"stop": 5}, "stop", "must be a string or a list of strings, got 5"),
    ({"stop": ["a", None]}, "stop", "got null at position 1"),
    ({"stop": ""}, "stop", "1 to"),
    ({"stop": ["x"] * 1000}, "stop", "got 1000"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token ids as keys, got 'x'"),
    ({"logit_bias": {"300": 1}}, "logit_bias", "token id 300; this model's ids are 0 to 257"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "at most 100"),
    ({"logit_bias": {"5": None}}, "logit_bias[5]", "must be a number, got null"),
    ({"logit_bias": []}, "logit_bias", "must be an object, got a list"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "token id -1"),
    ({"stop_token_ids": ["1"]}, "stop_token_ids[0]", "must be a whole number, got '1'"),
    ({"allowed_token_ids": [258]}, "allowed_token_ids", "token id 258"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "at least one"),
    ({"logprobs": 1}, "logprobs", "must be true or false, got 1"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs must be at most 20, got 21"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "top_logprobs must be at least 0"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"prompt_logprobs": 10**9}, "prompt_logprobs", "at most 20"),
    ({"prompt_logprobs": -1}, "prompt_logprobs", "at least 0"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not a field"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"messages": None}, "messages", "must be a list, got null"),
    ({"messages": []}, "messages", "got 0"),
    ({"messages": ["hi"]}, "messages[0]", "must be an object, got 'hi'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
    ({"messages": [{"role": "friend", "content": ""}]}, "messages[0].role", "got 'friend'"),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].tool_call_id", "is required in a message of role"),
    ({"messages": [{"role": "function", "content": ""}]}, "messages[0].name", "is required in a message of role"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content", "is required"),
    ({"messages": [{**USER, "tool_call_id": "c"}]}, "messages[0].tool_call_id", "of role 'tool', not of role 'user'"),
    ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0].tool_calls", "of role 'assistant'"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "is required"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got 5"),
    ({"messages": [USER, {**USER, "x": 1}]}, "messages[1].x", "not a field"),
    ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id", "is required"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "'image_url'"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "a string; position 0"),
    ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages", "not this"),
    ({"messages": [{"role": "user", "content": "x" * 500}]}, "messages", "too many"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", "cannot go with"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "is required"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"functions": [{}]}, "functions", "not supported"),
    ({"audio": {"voice": "x"}}, "audio", "not supported"),
    ({"modalities": ["audio"]}, "modalities", "not supported"),
    ({"store": True}, "store", "not supported by this server: it was started without --store"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
    ({"best_of": 1, "n": 2}, "best_of", "at least n (2), got 1"),
    ({"length_penalty": 2.0}, "length_penalty", "needs use_beam_search"),
    ({"early_stopping": "never"}, "early_stopping", "needs use_beam_search"),
    ({"use_beam_search": True, "early_stopping": "soon"}, "early_stopping", "got 'soon'"),
    ({"use_beam_search": True, "length_penalty": 11.0}, "length_penalty", "at most 10, got 11"),
    ({"use_beam_search": True, "temperature": 0.5}, "temperature", "must be 0 or 1 with use_beam_search"),
    ({"use_beam_search": True, "top_p": 0.5}, "top_p", "cannot go with use_beam_search"),
    ({"guided_xml": {}}, "guided_xml", "not a field"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16 entries, got 17"),
    ({"metadata": {"x" * 65: ""}}, "metadata", "keys of at most 64 characters, got one of 65"),
    ({"service_tier": "gold"}, "service_tier", "got 'gold'"),
    ({"cache_salt": ""}, "cache_salt", "1 to 512 characters"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention", "not supported"),
    ({"metadata": {"a": 1}}, "metadata.a", "must be a string, got 1"),
    ({"user": "x" * 1000}, "user", "at most 512"),
    ({"model": 5}, "model", "must be a string, got 5"),
]

COMPLETION_FAULTS = [
    ({"prompt": None}, "prompt", "must be a string, a list of token ids, or a list of these, got null"),
    ({"prompt": {}}, "prompt", "got an object"),
    ({"prompt": []}, "prompt", "at least one token"),
    ({"prompt": [[]]}, "prompt", "at least one token"),
    ({"prompt": [1, "a"]}, "prompt", "a list of length 2"),
    ({"prompt": [True]}, "prompt", "a list of length 1"),
    ({"prompt": ["a", 1.5]}, "prompt", "got 1.5 at position 1"),
    ({"prompt": [258]}, "prompt", "token id 258; this model's ids are 0 to 257"),
    ({"prompt": [-1]}, "prompt", "token id -1"),
    ({"prompt": [[1], [2, 2**40]]}, "prompt", f"token id {2**40}"),
    (
        {"prompt": [1] * 400},
        "prompt",
        "the prompt has 400 tokens and needs 1 more for its answer; this model takes 400",
    ),
    ({"prompt": ["x"] * 2000}, "prompt", "got 2000 prompts"),
    ({"prompt": ["x"] * 100, "n": 100}, "prompt", "n = 100"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"logprobs": 21}, "logprobs", "at most 20, got 21"),
    ({"logprobs": True}, "logprobs", "must be a whole number, got true"),
    ({"best_of": 129}, "best_of", "at most 128, got 129"),
    ({"suffix": "end"}, "suffix", "not supported"),
    ({"messages": []}, "messages", "not a field"),
    ({"tools": []}, "tools", "not a field"),
]


@pytest.mark.parametrize(("fault", "field", "words"), CHAT_FAULTS, ids=lambda value: str(value)[:40])
def test_a_faulty_chat_request_is_refused_by_name(
    client: httpx.Client, llm: FakeLLM, fault: dict, field: str, words: str
) -> None:
    error = error_of(client.post(CHAT, json={"messages": [USER], **fault}))
    assert (error["type"], error["param"]) == ("invalid_request_error", field)
    assert words in error["message"]
    assert not llm.seen


@pytest.mark.parametrize(("fault", "field", "words"), COMPLETION_FAULTS, ids=lambda value: str(value)[:40])
def test_a_faulty_completion_request_is_refused_by_name(
    client: httpx.Client, llm: FakeLLM, fault: dict, field: str, words: str
) -> None:
    error = error_of(client.post(COMPLETIONS, json={"prompt": "hi", **fault}))
    assert (error["type"], error["param"]) == ("invalid_request_error", field)
    assert words in error["message"]
    assert not llm.seen


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/tokenize", "/detokenize"])
def test_another_models_name_is_a_404(client: httpx.Client, path: str) -> None:
    body = {CHAT: {"messages": [USER]}, "/detokenize": {"tokens": [1]}}.get(path, {"prompt": "hi"})
    error = error_of(client.post(path, json={**body, "model": "gpt-9"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'gpt-9'" in error["message"]
    assert "'fake'" in error["message"]


@pytest.mark.parametrize(
    "body", [b"{", b"nope", b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b'{"prompt": "\xff"}', b"[" * 100_000]
)
def test_what_is_not_json_is_a_400(client: httpx.Client, body: bytes) -> None:
    response = client.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert "the request body is not JSON" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("body", "came"), [(b"[1]", "a list of length 1"), (b"5", "5"), (b"null", "null"), (b"", "nothing")]
)
def test_a_body_that_is_no_object_is_a_400(client: httpx.Client, body: bytes, came: str) -> None:
    response = client.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert error_of(response)["message"] == f"the request body must be a JSON object, got {came}"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_must_be_announced_as_json(client: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = client.post(COMPLETIONS, content=b'{"prompt": "hi"}', headers=headers)
    assert "must be 'application/json'" in error_of(response, 415)["message"]


def test_an_unknown_route_is_a_404_in_the_same_shape(client: httpx.Client) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["message"] == "there is no '/v1/nothing' here"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(COMPLETIONS, "POST"), (CHAT, "GET, POST"), (f"{CHAT}/x", "GET, POST, DELETE"), ("/v1/models", "GET")],
)
def test_a_wrong_method_is_a_405_that_says_the_right_ones(client: httpx.Client, path: str, allowed: str) -> None:
    response = client.put(path)
    assert f"does not take PUT, but {allowed}" in error_of(response, 405)["message"]
    assert response.headers["allow"] == allowed


def test_head_is_get_without_a_body(client: httpx.Client) -> None:
    for path in ("/health", "/v1/models", "/v1/models/fake"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-length"] == client.get(path).headers["content-length"]
    assert client.head("/v1/nothing").status_code == 404
    assert client.head(COMPLETIONS).status_code == 405


def test_a_body_may_be_large_but_not_larger(client: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    largest = b'{"prompt": "hi"}'.ljust(Limits().max_body_bytes)
    assert client.post(COMPLETIONS, content=largest, headers=headers).status_code == 200
    error = error_of(client.post(COMPLETIONS, content=largest + b" ", headers=headers), 413)
    assert str(Limits().max_body_bytes) in error["message"]


def test_a_body_of_unknown_length_is_counted_as_it_comes(client: httpx.Client) -> None:
    chunks = (b"x" * 2**20 for _ in range(9))
    response = client.post(COMPLETIONS, content=chunks, headers={"content-type": "application/json"})
    assert error_of(response, 413)["param"] is None


def test_an_error_repeats_little_of_what_came(client: httpx.Client) -> None:
    for body in ({"temperature": "x" * 10**6}, {"x" * 10**6: 1}, {"model": "x" * 10**6}, {"stop": ["x" * 10**6]}):
        response = client.post(COMPLETIONS, json={"prompt": "hi", **body})
        assert 400 <= response.status_code < 500
        assert len(response.content) < 500


def test_a_conversation_needs_a_chat_template(client: httpx.Client, llm: FakeLLM) -> None:
    template, llm.tokenizer.chat_template = llm.tokenizer.chat_template, None
    try:
        assert "no chat template" in error_of(client.post(CHAT, json={"messages": [USER]}))["message"]
    finally:
        llm.tokenizer.chat_template = template


def test_an_unexpected_fault_is_a_500_that_tells_nothing(client: httpx.Client, llm: FakeLLM) -> None:
    llm.fail(0, RuntimeError("secret path /home/x"))
    error = error_of(client.post(COMPLETIONS, json={"prompt": "hi"}), 500)
    assert error["message"] == "the server met an internal error"
