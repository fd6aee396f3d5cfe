"""POST /v1/chat/completions."""

import httpx
import pytest

from support.fake_llm import REPLY, FakeLLM
from support.live_server import LiveServer, events_of

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}


def chat(client: httpx.Client, *messages: dict, **body: object) -> dict:
    response = client.post(PATH, json={"messages": messages or [USER], **body})
    assert response.status_code == 200, response.text
    return response.json()


def stream(client: httpx.Client, **body: object) -> list:
    with client.stream("POST", PATH, json={"messages": [USER], "stream": True, **body}) as response:
        assert response.status_code == 200
        return events_of(response)


def prompt_of(client: httpx.Client, *messages: dict, **body: object) -> str:
    """What the engine was given, as text."""
    answer = chat(client, *messages, max_tokens=1, return_token_ids=True, **body)
    return bytes(answer["prompt_token_ids"]).decode()


def test_an_answer_has_openais_shape(client: httpx.Client) -> None:
    answer = chat(client)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": REPLY, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


def test_the_template_writes_the_prompt_and_no_begin_of_sequence_is_added(client: httpx.Client) -> None:
    messages = [{"role": "system", "content": "be kind"}, USER, {"role": "assistant", "content": "yes"}, USER]
    assert prompt_of(client, *messages) == "[system]be kind\n[user]hi\n[assistant]yes\n[user]hi\n[assistant]"


def test_a_developer_is_what_templates_call_system(client: httpx.Client) -> None:
    assert prompt_of(client, {"role": "developer", "content": "x"}).startswith("[system]x")


def test_text_parts_stand_on_lines_of_their_own(client: httpx.Client) -> None:
    parts = [{"type": "text", "text": "eins"}, {"type": "text", "text": "zwei"}]
    assert prompt_of(client, {"role": "user", "content": parts}) == "[user]eins\nzwei\n[assistant]"


def test_a_name_is_shown_to_the_template(client: httpx.Client) -> None:
    assert prompt_of(client, {**USER, "name": "Ann"}) == "[user Ann]hi\n[assistant]"


def test_tool_calls_and_their_results_reach_the_template(client: httpx.Client) -> None:
    function = {"name": "weather", "arguments": '{"city": "Köln"}'}
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    result = {"role": "tool", "content": "rain", "tool_call_id": "c1"}
    written = '(c1 {"name": "weather", "arguments": {"city": "Köln"}})'
    assert prompt_of(client, USER, call, result) == f"[user]hi\n[assistant]{written}\n[tool c1]rain\n[assistant]"


def test_arguments_that_are_not_json_are_shown_as_they_are(client: httpx.Client) -> None:
    call = {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{oops"}}]}
    assert '"arguments": "{oops"' in prompt_of(client, USER, call)


def test_function_calls_are_tool_calls_of_an_older_kind(client: httpx.Client) -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    result = {"role": "function", "name": "f", "content": "1"}
    prompt = prompt_of(client, USER, call, result)
    assert prompt == '[user]hi\n[assistant]( {"name": "f", "arguments": {}})\n[tool f]1\n[assistant]'


def test_a_refusal_is_what_the_assistant_said(client: httpx.Client) -> None:
    parts = [{"type": "refusal", "refusal": "no"}]
    for message in ({"role": "assistant", "refusal": "no"}, {"role": "assistant", "content": parts}):
        assert prompt_of(client, message).startswith("[assistant]no")


def test_the_generation_prompt_can_be_left_out(client: httpx.Client) -> None:
    assert prompt_of(client, USER, add_generation_prompt=False) == "[user]hi\n"


def test_the_final_message_can_be_continued(client: httpx.Client) -> None:
    final = {"role": "assistant", "content": "The answer"}
    assert prompt_of(client, USER, final, continue_final_message=True) == "[user]hi\n[assistant]The answer"


def test_echo_begins_the_answer_with_the_assistants_last_message(client: httpx.Client) -> None:
    final = {"role": "assistant", "content": "Oh: "}
    whole = chat(client, USER, final, continue_final_message=True, echo=True)
    assert whole["choices"][0]["message"]["content"] == "Oh: " + REPLY
    assert chat(client, USER, echo=True)["choices"][0]["message"]["content"] == REPLY


def test_without_max_tokens_the_model_decides_where_to_end(client: httpx.Client, llm: FakeLLM) -> None:
    chat(client)
    assert llm.seen[0].max_tokens is None


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_limit_the_answer(client: httpx.Client, name: str) -> None:
    answer = chat(client, **{name: 3})
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (3, "length")


def test_a_stream_opens_with_the_role_and_ends_with_the_reason(client: httpx.Client) -> None:
    first, *middle, last, done = stream(client)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == REPLY
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in (first, *middle, last))


def test_choices_of_one_stream_each_open_and_end_once(client: httpx.Client) -> None:
    choices = [chunk["choices"][0] for chunk in stream(client, n=3, max_tokens=4)[:-1]]
    assert sorted(c["index"] for c in choices if "role" in c["delta"]) == [0, 1, 2]
    assert sorted(c["index"] for c in choices if c["finish_reason"] == "length") == [0, 1, 2]


def test_choices_are_told_apart_by_their_index(client: httpx.Client) -> None:
    texts = [choice["message"]["content"] for choice in chat(client, n=2, max_tokens=3)["choices"]]
    streamed = ["", ""]
    for chunk in stream(client, n=2, max_tokens=3)[:-1]:
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert streamed == texts
    assert texts[0] != texts[1]


def test_the_usage_chunk_comes_last_and_has_no_choices(client: httpx.Client) -> None:
    *chunks, usage, done = stream(client, max_tokens=4, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)


def test_without_include_usage_no_chunk_mentions_it(client: httpx.Client) -> None:
    assert all("usage" not in chunk for chunk in stream(client, max_tokens=4)[:-1])


def test_the_bytes_of_the_logprobs_make_up_the_text(client: httpx.Client) -> None:
    content = chat(client, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == REPLY
    assert all(entry["top_logprobs"] == [] for entry in content)


def test_a_token_that_is_not_in_the_text_has_no_bytes(client: httpx.Client) -> None:
    choice = chat(client, logprobs=True, ignore_eos=True, max_tokens=len(REPLY.encode()) + 2)["choices"][0]
    hidden, last = choice["logprobs"]["content"][-2:]
    assert (hidden["token"], hidden["bytes"], last["bytes"]) == ("</s>", None, [ord("r")])
    assert choice["message"]["content"] == REPLY + "r"


def test_top_logprobs_are_best_first_and_carry_exact_bytes(client: httpx.Client) -> None:
    entry = chat(client, logprobs=True, top_logprobs=4, max_tokens=1)["choices"][0]["logprobs"]["content"][0]
    values = [other["logprob"] for other in entry["top_logprobs"]]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)
    assert all(len(other["bytes"]) == 1 for other in entry["top_logprobs"] if other["token"] not in ("<s>", "</s>"))


def test_streamed_logprobs_are_those_of_the_whole_answer(client: httpx.Client) -> None:
    options = {"logprobs": True, "top_logprobs": 2, "max_tokens": 12}
    streamed = [
        entry
        for chunk in stream(client, **options)[:-1]
        if chunk["choices"][0]["logprobs"]
        for entry in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == chat(client, **options)["choices"][0]["logprobs"]["content"]


def test_prompt_logprobs_come_once_beside_the_choices(client: httpx.Client) -> None:
    whole = chat(client, prompt_logprobs=1, max_tokens=2)
    assert len(whole["prompt_logprobs"]) == whole["usage"]["prompt_tokens"]
    chunks = stream(client, prompt_logprobs=1, max_tokens=2)[:-1]
    assert [chunk["prompt_logprobs"] for chunk in chunks if "prompt_logprobs" in chunk] == [whole["prompt_logprobs"]]


def test_a_seed_decides_the_answer(client: httpx.Client) -> None:
    answers = [chat(client, seed=seed, max_tokens=4)["choices"][0]["message"]["content"] for seed in (3, 3, 4)]
    assert answers[0] == answers[1] != answers[2]


def test_continuous_usage_is_in_every_chunk(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last, _ = stream(client, n=2, max_tokens=4, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 8)
    without_last = stream(client, max_tokens=4, stream_options={"continuous_usage_stats": True})[:-1]
    assert all(chunk["choices"] and chunk["usage"] for chunk in without_last)


def test_metadata_is_accepted_and_echoed_where_there_is_a_place(client: httpx.Client) -> None:
    answer = chat(client, user="ann", metadata={"run": "7"}, safety_identifier="s", prompt_cache_key="k")
    assert answer["metadata"] == {"run": "7"}
    assert chat(client, service_tier="flex")["service_tier"] == "default"
    assert {chunk["service_tier"] for chunk in stream(client, service_tier="auto")[:-1]} == {"default"}
    assert "service_tier" not in chat(client)


def test_options_of_openais_that_ask_for_nothing_are_accepted(client: httpx.Client) -> None:
    chat(
        client,
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
        functions=[],
        function_call="none",
        parallel_tool_calls=True,
        modalities=["text"],
        audio=None,
        store=False,
        prompt_cache_retention="in_memory",
        verbosity="medium",
        reasoning_effort="none",
    )


def test_text_leaves_as_utf8_and_not_as_escapes(server: LiveServer, client: httpx.Client) -> None:
    response = client.post(PATH, json={"messages": [USER], "stream": True})
    assert "ü".encode() in response.content
    assert "京".encode() in response.content
    assert rb"\u" not in response.content
