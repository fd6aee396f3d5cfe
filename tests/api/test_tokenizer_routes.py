"""/tokenize, /detokenize, /tokenizer_info."""

import httpx

from support.fake_llm import BOS, CHAT_TEMPLATE, EOS

TEXT = "né 京"


def test_a_text_is_tokenized_with_its_special_tokens_unless_told_otherwise(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"prompt": TEXT}).json()
    assert answer == {"count": 8, "max_model_len": 400, "tokens": [BOS, *TEXT.encode()]}
    answer = client.post("/tokenize", json={"prompt": TEXT, "add_special_tokens": False}).json()
    assert answer["tokens"] == list(TEXT.encode())


def test_token_strings_come_when_asked_for(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"prompt": "hi", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["<s>", "h", "i"]


def test_a_conversation_is_tokenized_through_its_template(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
    assert bytes(answer["tokens"]).decode() == "[user]hi\n[assistant]"


def test_token_ids_go_back_to_the_text_they_came_from(client: httpx.Client) -> None:
    tokens = client.post("/tokenize", json={"prompt": TEXT, "add_special_tokens": False}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": TEXT}


def test_special_tokens_are_shown_unless_told_otherwise(client: httpx.Client) -> None:
    body = {"tokens": [BOS, 104, EOS]}
    assert client.post("/detokenize", json=body).json() == {"prompt": "<s>h</s>"}
    assert client.post("/detokenize", json={**body, "skip_special_tokens": True}).json() == {"prompt": "h"}


def test_the_tokenizers_marks_are_told(client: httpx.Client) -> None:
    info = client.get("/tokenizer_info").json()
    assert info["bos_token"] == "<s>"
    assert info["eos_token"] == "</s>"
    assert info["chat_template"] == CHAT_TEMPLATE
    assert info["model_max_length"] == 400


def test_a_text_or_a_conversation_but_not_both(client: httpx.Client) -> None:
    for body in ({}, {"prompt": "a", "messages": [{"role": "user", "content": "hi"}]}):
        response = client.post("/tokenize", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


def test_an_id_outside_the_vocabulary_is_refused(client: httpx.Client) -> None:
    error = client.post("/detokenize", json={"tokens": [5, 258]}).json()["error"]
    assert (error["param"], error["message"]) == (
        "tokens",
        "tokens holds token id 258; this tokenizer's ids are 0 to 257",
    )
