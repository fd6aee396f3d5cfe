"""Texts of PolyLM's languages through both protocols, with a real tokenizer and answers known beforehand."""

import json
import unicodedata
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import grpc
import httpx
import pytest

from polyserve.output import SequenceText
from polyserve.request import SequenceOutput, TokenLogprob
from polyserve.sampling_params import SamplingParams
from polyserve.service.async_llm import ChoiceDelta
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import FakeLLM
from support.live_server import LiveServer, events_of, live_server
from support.udhr import POLYLM_LANGUAGES, declaration

pytestmark = pytest.mark.model_package

NUM_CHARACTERS = 300


class Parrot(FakeLLM):
    """Answers with a text, one token at a time; the prompt says in which language."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.max_model_len = 100_000

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, **_: object
    ) -> AsyncGenerator[ChoiceDelta, None]:
        code = self.tokenizer.decode(list(prompt_ids), skip_special_tokens=True)
        text = SequenceText(self.tokenizer, params)
        token_ids = self.tokenizer.encode(text_in(code), add_special_tokens=False)
        for place, token_id in enumerate(token_ids):
            end = "length" if place == len(token_ids) - 1 else None
            logprobs = None if params.logprobs is None else [TokenLogprob(token_id, -1.0)]
            delta = text.push(SequenceOutput(request_id, 0, [token_id], logprobs, end))
            reasons = delta.finish_reason, delta.stop_reason
            yield ChoiceDelta(0, delta.text, delta.token_ids, delta.logprobs, *reasons, None, 0)


def text_in(code: str) -> str:
    return declaration(code)[:NUM_CHARACTERS]


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def parrot(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    path: Path = request.getfixturevalue(f"{request.param}_file")
    tokenizer = load_tokenizer(path)
    declaration("eng")  # or skip
    with live_server(lambda: Parrot(tokenizer)) as server:
        yield server


@pytest.mark.parametrize("code", POLYLM_LANGUAGES.values())
def test_a_text_leaves_exactly_as_it_is(parrot: LiveServer, code: str) -> None:
    wanted = text_in(code)
    url = f"{parrot.url}/v1/completions"
    whole = httpx.post(url, json={"prompt": code, "max_tokens": 5000, "logprobs": 0})
    assert whole.json()["choices"][0]["text"] == wanted
    assert json.dumps(wanted, ensure_ascii=False).encode()[1:-1] in whole.content  # UTF-8, and not \\u escapes
    with httpx.stream("POST", url, json={"prompt": code, "max_tokens": 5000, "stream": True}) as response:
        events = events_of(response)
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == wanted
    with grpc.insecure_channel(parrot.grpc_address) as channel:
        request = pb.GenerateRequest(text=code, params=pb.SamplingParams(max_tokens=5000, logprobs=0))
        deltas = [event.delta for event in PolyServeStub(channel).Generate(request)]
    assert "".join(delta.text for delta in deltas) == wanted
    assert b"".join(entry.bytes for delta in deltas for entry in delta.logprobs).decode() == wanted


@pytest.mark.parametrize("how", ["none", "nfc"])
def test_input_is_composed_where_the_server_says_so(how: str) -> None:
    apart = unicodedata.normalize("NFD", "Tuyên ngôn 선언")
    wanted = unicodedata.normalize("NFC", apart) if how == "nfc" else apart
    with live_server(normalization=how) as server, grpc.insecure_channel(server.grpc_address) as channel:
        tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": apart, "add_special_tokens": False}).json()
        assert bytes(tokens["tokens"]).decode() == wanted
        body = {"messages": [{"role": "user", "content": apart}], "return_token_ids": True, "max_tokens": 1}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()
        assert wanted in bytes(answer["prompt_token_ids"]).decode()
        stub = PolyServeStub(channel)
        request = pb.TokenizeRequest(text=apart, add_special_tokens=False)
        assert bytes(stub.Tokenize(request).token_ids).decode() == wanted
        body = {"inputs": [{"context": apart, "continuation": apart}]}
        [score] = httpx.post(f"{server.url}/v1/score", json=body).json()["data"]
        assert bytes(score["token_ids"]).decode() == wanted
        stub.Embed(pb.EmbedRequest(inputs=[pb.EmbedInput(text=apart)]))
        assert bytes(server.llm.embedded[0][0][1:]).decode() == wanted
