"""Vectors over HTTP and gRPC."""

import base64
import struct

import grpc
import httpx
import openai
import pytest

from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import BOS, MODEL_SIZE, FakeLLM
from support.live_server import LiveServer, wait_until

PATH = "/v1/embeddings"


def vectors(client: httpx.Client, **body: object) -> list[list[float]]:
    response = client.post(PATH, json={"input": "hi", **body})
    assert response.status_code == 200, response.text
    return [item["embedding"] for item in response.json()["data"]]


def length(vector: list[float]) -> float:
    return sum(x * x for x in vector) ** 0.5


def test_a_text_becomes_a_vector_of_unit_length(client: httpx.Client, llm: FakeLLM) -> None:
    answer = client.post(PATH, json={"input": "hi", "model": "org/alias"}).json()
    assert llm.embedded == [([BOS, *b"hi"], "last")]
    assert (answer["object"], answer["model"]) == ("list", "fake")
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert [(item["object"], item["index"]) for item in answer["data"]] == [("embedding", 0)]
    assert len(answer["data"][0]["embedding"]) == MODEL_SIZE
    assert length(answer["data"][0]["embedding"]) == pytest.approx(1)


@pytest.mark.parametrize("given", [["a", "bc"], [[BOS, 97], [BOS, 98, 99]], ["a", [BOS, 98, 99]]])
def test_a_batch_is_answered_in_order(client: httpx.Client, llm: FakeLLM, given: list) -> None:
    answer = client.post(PATH, json={"input": given}).json()
    assert [ids for ids, _ in llm.embedded] == [[BOS, 97], [BOS, 98, 99]]
    assert [item["index"] for item in answer["data"]] == [0, 1]
    first, second = (item["embedding"] for item in answer["data"])
    assert first[0] / first[1] == pytest.approx(1)
    assert second[0] / second[1] == pytest.approx(1.5)
    assert answer["usage"]["prompt_tokens"] == 5


def test_token_ids_of_one_prompt_are_one_input(client: httpx.Client, llm: FakeLLM) -> None:
    assert len(vectors(client, input=[5, 6])) == 1
    assert llm.embedded == [([5, 6], "last")]


def test_pooling_can_be_the_mean(client: httpx.Client, llm: FakeLLM) -> None:
    vectors(client, pooling="mean")
    assert llm.embedded[0][1] == "mean"


def test_base64_holds_the_same_floats(client: httpx.Client) -> None:
    (numbers,) = vectors(client)
    (encoded,) = vectors(client, encoding_format="base64")
    assert list(struct.unpack(f"<{MODEL_SIZE}f", base64.b64decode(encoded))) == numbers


def test_fewer_dimensions_have_unit_length_again(client: httpx.Client) -> None:
    (whole,), (cut,) = vectors(client), vectors(client, dimensions=2)
    assert length(cut) == pytest.approx(1)
    assert cut[0] / cut[1] == pytest.approx(whole[0] / whole[1])


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"input": []}, "input", "at least one token"),
        ({"input": ""}, None, None),  # the begin-of-sequence token is a prompt
        ({"input": [[]]}, "input", "at least one token"),
        ({"input": None}, "input", "got null"),
        ({"input": [258]}, "input", "token id 258"),
        ({"input": ["a"] * 2000}, "input", "got 2000 prompts"),
        ({"input": [1] * 401}, "input", "401 tokens"),
        ({"dimensions": 0}, "dimensions", f"at least 1 and at most {MODEL_SIZE}, the model's own, got 0"),
        ({"dimensions": MODEL_SIZE + 1}, "dimensions", f"at most {MODEL_SIZE}"),
        ({"dimensions": "2"}, "dimensions", "whole number"),
        ({"encoding_format": "hex"}, "encoding_format", "got 'hex'"),
        ({"pooling": "max"}, "pooling", "must be 'last' or 'mean'"),
        ({"temperature": 1}, "temperature", "not a field"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(client: httpx.Client, body: dict, field: str | None, words: str | None) -> None:
    response = client.post(PATH, json={"input": "hi", **body})
    if field is None:
        assert response.status_code == 200
        return
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert words in response.json()["error"]["message"]


def test_a_client_that_leaves_aborts_every_input(client: httpx.Client, llm: FakeLLM) -> None:
    llm.hold(0)
    with pytest.raises(httpx.ReadTimeout):
        client.post(PATH, json={"input": ["a", "b"]}, timeout=0.3)
    wait_until(lambda: len(llm.aborted) == 2)


def test_openais_client_reads_them(server: LiveServer, llm: FakeLLM) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        by_default = client.embeddings.create(model="fake", input="hi")  # it asks for base64 itself
        as_floats = client.embeddings.create(model="fake", input="hi", encoding_format="float")
    assert by_default.data[0].embedding == as_floats.data[0].embedding


def test_grpc_gives_the_vectors_of_http(server: LiveServer, client: httpx.Client, llm: FakeLLM) -> None:
    inputs = [pb.EmbedInput(text="hi"), pb.EmbedInput(token_ids=pb.TokenIds(ids=[5, 6]))]
    request = pb.EmbedRequest(inputs=inputs, pooling=pb.POOLING_MEAN, dimensions=4)
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = PolyServeStub(channel).Embed(request)
        with pytest.raises(grpc.RpcError) as caught:
            PolyServeStub(channel).Embed(pb.EmbedRequest(inputs=[pb.EmbedInput()]))
        assert caught.value.details() == "inputs[0] must have one of text and token_ids"
    over_http = vectors(client, input=["hi", [5, 6]], pooling="mean", dimensions=4)
    assert [list(one.values) for one in answer.embeddings] == over_http
    assert (answer.prompt_tokens, answer.model, answer.system_fingerprint) == (5, "fake", "fake-numerics")
