"""The arrays of /v1/completions that scoring programs read."""

import httpx
import pytest

from support.fake_llm import BOS, REPLY, logprob_of

TEXT = "né 京"


def arrays(client: httpx.Client, **body: object) -> dict:
    body = {"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, **body}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["logprobs"]


@pytest.mark.parametrize("num_new", [0, 1, 3])
def test_with_echo_the_arrays_cover_the_prompt_and_what_was_generated(client: httpx.Client, num_new: int) -> None:
    got = arrays(client, prompt=[5, 6, 7, 8], max_tokens=num_new)
    assert {name: len(values) for name, values in got.items()} == dict.fromkeys(
        ("tokens", "token_logprobs", "top_logprobs", "text_offset"), 4 + num_new
    )


def test_nothing_predicts_the_first_token(client: httpx.Client) -> None:
    got = arrays(client)
    assert (got["token_logprobs"][0], got["top_logprobs"][0]) == (None, None)
    assert None not in got["token_logprobs"][1:]


def test_each_value_belongs_to_its_own_token(client: httpx.Client) -> None:
    got = arrays(client, prompt=[5, 6, 7])
    assert got["token_logprobs"][1:] == [logprob_of(6, 1), logprob_of(7, 2), logprob_of(ord("G"), 3)]


def test_a_token_is_the_likeliest_exactly_if_it_equals_the_largest_value(client: httpx.Client) -> None:
    ids = list(range(20, 80))
    got = arrays(client, prompt=ids)
    for position, token_id in list(enumerate(ids))[1:]:
        value, top = got["token_logprobs"][position], got["top_logprobs"][position]
        likeliest = max(logprob_of((token_id + step) % 258, position) for step in range(40))
        assert max(top.values()) == likeliest
        assert (value == max(top.values())) == (logprob_of(token_id, position) == likeliest)


def test_every_prompt_of_a_batch_is_scored_by_itself(client: httpx.Client) -> None:
    body = {"prompt": [[9, 10], [9, 10, 11]], "echo": True, "logprobs": 1, "max_tokens": 1}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [3, 4]


def test_the_token_itself_is_always_among_its_alternatives(client: httpx.Client) -> None:
    got = arrays(client, logprobs=0)
    for token, value, top in list(zip(got["tokens"], got["token_logprobs"], got["top_logprobs"], strict=True))[1:]:
        assert top == {token: value}


def test_bytes_that_are_no_character_are_spelled_out(client: httpx.Client) -> None:
    assert arrays(client)["tokens"] == [
        "<s>",
        "n",
        r"bytes:\xc3",
        r"bytes:\xa9",
        " ",
        *(rf"bytes:\x{byte:02x}" for byte in "京".encode()),
        "G",
    ]


def test_offsets_point_at_the_characters_of_the_text(client: httpx.Client) -> None:
    got = arrays(client, max_tokens=3)
    assert got["text_offset"] == [0, 0, 1, 1, 2, 3, 3, 3, 4, 5, 6]


def test_offsets_of_an_answer_without_echo_begin_at_zero(client: httpx.Client) -> None:
    got = arrays(client, echo=False, max_tokens=3)
    assert got["text_offset"] == [0, 1, 2]


def test_a_token_that_is_not_in_the_text_takes_no_room_in_it(client: httpx.Client) -> None:
    got = arrays(client, echo=False, max_tokens=len(REPLY.encode()) + 2, ignore_eos=True)
    assert got["tokens"][-2:] == ["</s>", "r"]
    assert got["text_offset"][-2:] == [len(REPLY)] * 2


def test_the_end_of_sequence_is_scored_though_it_is_not_in_the_text(client: httpx.Client) -> None:
    got = arrays(client, echo=False, max_tokens=100)
    assert len(got["tokens"]) == len(REPLY.encode()) + 1
    assert got["tokens"][-1] == "</s>"


def test_prompt_logprobs_are_ranked_by_token_id(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={"prompt": [5, 6], "prompt_logprobs": 2, "max_tokens": 1})
    first, second = response.json()["choices"][0]["prompt_logprobs"]
    assert first is None
    assert second["6"]["logprob"] == logprob_of(6, 1)
    assert sorted(entry["rank"] for entry in second.values() if entry["rank"]) == [1, 2]


@pytest.mark.parametrize(("num_legacy", "num_ranked"), [(2, 5), (5, 2)])
def test_both_shapes_of_a_prompts_scores_have_their_own_width(
    client: httpx.Client, num_legacy: int, num_ranked: int
) -> None:
    body = {"prompt": [5, 6], "echo": True, "logprobs": num_legacy, "prompt_logprobs": num_ranked, "max_tokens": 0}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert len([entry for entry in choice["prompt_logprobs"][1].values() if entry["rank"]]) == num_ranked
    assert len(choice["logprobs"]["top_logprobs"][1]) in (num_legacy, num_legacy + 1)


def test_echo_of_several_choices_scores_the_prompt_in_each(client: httpx.Client) -> None:
    body = {"prompt": [BOS, 66], "echo": True, "logprobs": 1, "max_tokens": 2, "n": 3}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert [choice["logprobs"]["token_logprobs"][:2] for choice in choices] == [[None, logprob_of(66, 1)]] * 3
