"""POST /v1/completions."""

import httpx
import pytest

from support.fake_llm import BOS, REPLY, FakeLLM
from support.live_server import events_of

PATH = "/v1/completions"


def complete(client: httpx.Client, **body: object) -> dict:
    response = client.post(PATH, json={"prompt": "hi", **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_completion_has_openais_shape(client: httpx.Client) -> None:
    answer = complete(client, max_tokens=100, temperature=0)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "fake"
    assert answer["system_fingerprint"] == "fake-numerics"
    assert answer["choices"] == [{"index": 0, "text": REPLY, "logprobs": None, "finish_reason": "stop"}]


def test_max_tokens_is_16_by_default(client: httpx.Client) -> None:
    answer = complete(client)
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_text_prompt_gets_its_begin_of_sequence_token_and_ids_do_not(client: httpx.Client) -> None:
    assert complete(client, prompt="hi")["usage"]["prompt_tokens"] == 3
    assert complete(client, prompt=[104, 105])["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("prompts", [["a", "b"], [[97], [98]]])
def test_each_prompt_of_a_list_has_its_choices_in_order(client: httpx.Client, prompts: list[object]) -> None:
    answer = complete(client, prompt=prompts, n=2, echo=True, max_tokens=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["aG", "ar", "bG", "br"]


def test_usage_counts_a_prompt_once_whatever_n(client: httpx.Client) -> None:
    usage = complete(client, prompt="hi", n=3, max_tokens=2)["usage"]
    assert usage == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_echo_of_token_ids_is_their_text(client: httpx.Client) -> None:
    assert complete(client, prompt=[BOS, 104, 105], echo=True, max_tokens=1)["choices"][0]["text"] == "<s>hiG"


def test_echo_without_new_tokens_is_the_prompt_alone(client: httpx.Client) -> None:
    choice = complete(client, echo=True, max_tokens=0)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("hi", "length")


def test_a_stop_string_ends_the_text_before_it_and_is_named(client: httpx.Client) -> None:
    choice = complete(client, stop=["xx", "aus"], max_tokens=50)["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("Grüße ", "stop", "aus")


def test_one_stop_string_need_not_be_a_list(client: httpx.Client) -> None:
    assert complete(client, stop="aus", max_tokens=50)["choices"][0]["text"] == "Grüße "


def test_a_stop_token_is_named_by_its_id(client: httpx.Client) -> None:
    choice = complete(client, stop_token_ids=[ord("e")], max_tokens=50)["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == ("Grüß", ord("e"))


def test_options_reach_the_engine_under_their_names(client: httpx.Client, llm: FakeLLM) -> None:
    options = {
        "n": 2,
        "max_tokens": 5,
        "min_tokens": 1,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.05,
        "typical_p": 0.8,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "allowed_token_ids": [1, 2],
        "seed": -5,
        "stop": ["x"],
        "include_stop_str_in_output": True,
        "stop_token_ids": [7],
        "ignore_eos": True,
        "logprobs": 2,
        "prompt_logprobs": 1,
        "skip_special_tokens": False,
        "priority": -3,
    }
    complete(client, **options, logit_bias={"5": -1})
    assert {name: getattr(llm.seen[0], name) for name in options} == options
    assert llm.seen[0].logit_bias == {5: -1}


def test_null_means_the_default(client: httpx.Client, llm: FakeLLM) -> None:
    complete(client, temperature=None, stop=None, stream=None, logprobs=None, best_of=None, suffix=None, user=None)
    assert llm.seen[0].temperature == 1.0


def test_text_leaves_as_utf8_and_not_as_escapes(client: httpx.Client) -> None:
    response = client.post(PATH, json={"prompt": "hi", "max_tokens": 100})
    assert REPLY.encode() in response.content


def test_token_ids_come_when_asked_for(client: httpx.Client) -> None:
    choice = complete(client, return_token_ids=True, max_tokens=2)["choices"][0]
    assert choice["token_ids"] == list(b"Gr")
    assert choice["prompt_token_ids"] == [BOS, *b"hi"]


def test_a_stream_brings_the_same_text_as_a_whole_answer(client: httpx.Client) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "echo": True, "max_tokens": 9, "stream": True}
    with client.stream("POST", PATH, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, done = events_of(response)
    assert done == "[DONE]"
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    whole = complete(client, prompt=["a", "b"], n=2, echo=True, max_tokens=9)
    assert list(texts.values()) == [choice["text"] for choice in whole["choices"]]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_each_choice_of_a_stream_ends_once(client: httpx.Client) -> None:
    with client.stream("POST", PATH, json={"prompt": "a", "n": 3, "max_tokens": 4, "stream": True}) as response:
        chunks = events_of(response)[:-1]
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"] is not None]
    assert sorted(ends) == [0, 1, 2]


def test_the_usage_chunk_comes_last_and_has_no_choices(client: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", PATH, json=body) as response:
        *chunks, usage, done = events_of(response)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 6)


def test_streamed_logprobs_join_to_the_whole_arrays(client: httpx.Client) -> None:
    body = {"prompt": "hé", "max_tokens": 6, "echo": True, "logprobs": 2}
    with client.stream("POST", PATH, json={**body, "stream": True}) as response:
        chunks = events_of(response)[:-1]
    whole = complete(client, **body)["choices"][0]["logprobs"]
    for name, values in whole.items():
        assert [v for chunk in chunks for v in chunk["choices"][0]["logprobs"][name]] == values
