"""The `openai` package, unchanged, against a real socket."""

import openai
import pytest

from support.fake_llm import REPLY, FakeLLM
from support.live_server import wait_until

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(openai_client: openai.OpenAI, llm: FakeLLM) -> openai.OpenAI:
    return openai_client


def test_it_lists_the_names_of_the_served_model(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [(model.id, model.owned_by) for model in models] == [("fake", "polyserve"), ("org/alias", "polyserve")]


@pytest.mark.parametrize("name", ["fake", "org/alias"])
def test_it_retrieves_a_model_by_each_name(client: openai.OpenAI, name: str) -> None:
    assert client.models.retrieve(name).id == name
    assert client.chat.completions.create(model=name, messages=MESSAGES).model == "fake"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name + "x")


def test_it_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=MESSAGES, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].finish_reason == "stop"
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_it_streams_a_chat(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="fake", messages=MESSAGES, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == REPLY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == len(REPLY.encode()) + 1


def test_its_own_accumulator_understands_the_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="fake", messages=MESSAGES, logprobs=True) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == REPLY
    assert len(answer.choices[0].logprobs.content) == len(REPLY.encode())


def test_it_completes_with_our_extensions(client: openai.OpenAI, llm: FakeLLM) -> None:
    answer = client.completions.create(
        model="fake", prompt=["a", "b"], logprobs=1, echo=True, extra_body={"top_k": 4, "min_p": 0.1}
    )
    assert [choice.text[0] for choice in answer.choices] == ["a", "b"]
    assert llm.seen[0].top_k == 4


def test_it_streams_completions(client: openai.OpenAI) -> None:
    chunks = client.completions.create(model="fake", prompt="a", stream=True, max_tokens=50)
    assert "".join(chunk.choices[0].text for chunk in chunks) == REPLY


def test_it_raises_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=MESSAGES, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")


def test_leaving_its_stream_aborts_the_request(client: openai.OpenAI, llm: FakeLLM) -> None:
    llm.hold(3)
    stream = client.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
    next(stream)
    stream.close()

    wait_until(lambda: len(llm.aborted) == 1)
