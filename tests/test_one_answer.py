"""One request, one answer: the same tokens and the same bits of log-probabilities over HTTP, over gRPC and from LLM,
streamed or not, alone or beside 31 others, in fp32 and in bf16, greedy and seeded.

`tests/engine/test_invariance.py` takes the engine itself apart.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import httpx
import pytest

from polyserve import LLM, SamplingParams
from polyserve.config import EngineConfig
from polyserve_proto.v1 import polyserve_pb2, polyserve_pb2_grpc
from support.checkpoints import make_checkpoint
from support.served_model import served

NUM_REQUESTS = 32
MAX_TOKENS = 12
TIMEOUT_S = 120


@dataclass(frozen=True)
class Asked:
    prompt_ids: list[int]
    temperature: float
    seed: int


@dataclass(frozen=True)
class Answer:
    token_ids: list[int]
    logprobs: list[float]


def questions() -> list[Asked]:
    """Prompts of 1 to 90 tokens with shared beginnings; every second one sampled."""
    return [
        Asked([(7 * i + n % 4) % 500 for i in range(1 + 13 * n % 90)], temperature=0.9 * (n % 2), seed=n)
        for n in range(NUM_REQUESTS)
    ]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def server(checkpoint, dtype):
    with served(checkpoint, "--dtype", dtype, "--max-num-batched-tokens", "48", "--threads", "1") as server:
        yield server


@pytest.fixture(scope="module")
def expected(checkpoint, dtype):
    """From LLM, one at a time, without a prefix cache."""
    llm = LLM(config=EngineConfig(model=str(checkpoint), dtype=dtype, threads=1, enable_prefix_caching=False))
    answers = []
    for asked in questions():
        params = SamplingParams(
            temperature=asked.temperature, seed=asked.seed, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0
        )
        [answer] = llm.generate([asked.prompt_ids], params)[0].outputs
        answers.append(Answer(answer.token_ids, [entry.logprob for entry in answer.logprobs]))
    return answers


def body(asked: Asked) -> dict[str, object]:
    return {
        "prompt": asked.prompt_ids,
        "temperature": asked.temperature,
        "seed": asked.seed,
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
    }


def over_http(server, asked: Asked) -> Answer:
    response = httpx.post(f"{server.url}/v1/completions", json=body(asked), timeout=TIMEOUT_S)
    [choice] = response.raise_for_status().json()["choices"]
    return Answer(choice["token_ids"], choice["logprobs"]["token_logprobs"])


def streamed_over_http(server, asked: Asked) -> Answer:
    answer = Answer([], [])
    content = body(asked) | {"stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=content, timeout=TIMEOUT_S) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                [choice] = json.loads(line.removeprefix("data: "))["choices"]
                answer.token_ids.extend(choice["token_ids"])
                answer.logprobs.extend(choice["logprobs"]["token_logprobs"])
    return answer


def over_grpc(server, asked: Asked) -> Answer:
    answer = Answer([], [])
    params = polyserve_pb2.SamplingParams(
        temperature=asked.temperature, seed=asked.seed, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0
    )
    request = polyserve_pb2.GenerateRequest(token_ids=polyserve_pb2.TokenIds(ids=asked.prompt_ids), params=params)
    with grpc.insecure_channel(server.grpc_address) as channel:
        for response in polyserve_pb2_grpc.PolyServeStub(channel).Generate(request, timeout=TIMEOUT_S):
            answer.token_ids.extend(response.delta.token_ids)
            answer.logprobs.extend(entry.logprob for entry in response.delta.logprobs)
    return answer


@pytest.mark.parametrize("ask", [over_http, streamed_over_http, over_grpc])
def test_alone(server, expected, ask):
    for asked, answer in list(zip(questions(), expected, strict=True))[:6]:
        assert ask(server, asked) == answer


@pytest.mark.parametrize("ask", [over_http, streamed_over_http, over_grpc])
def test_beside_31_others(server, expected, ask):
    with ThreadPoolExecutor(NUM_REQUESTS) as threads:
        assert list(threads.map(lambda asked: ask(server, asked), questions())) == expected


def test_all_in_one_call_of_llm(checkpoint, dtype, expected):
    llm = LLM(config=EngineConfig(model=str(checkpoint), dtype=dtype, threads=2, max_num_batched_tokens=100))
    params = [
        SamplingParams(temperature=a.temperature, seed=a.seed, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0)
        for a in questions()
    ]
    answers = [output.outputs[0] for output in llm.generate([a.prompt_ids for a in questions()], params)]
    assert [Answer(a.token_ids, [entry.logprob for entry in a.logprobs]) for a in answers] == expected


def test_the_questions_have_different_answers(expected):
    assert len({tuple(answer.token_ids) for answer in expected}) > NUM_REQUESTS / 2
