"""Every feature of the API has the same tokens over gRPC, streamed, as over HTTP in one piece: a real model answers."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.served_model import Served, served

pytestmark = pytest.mark.model_package
TIMEOUT_S = 120
PROMPT = "Die Stadt am Fluss, 河边的城市"
PROPERTIES = '{"name": {"type": "string", "maxLength": 20}, "size": {"type": "integer"}}'
SCHEMA = (
    f'{{"type": "object", "properties": {PROPERTIES}, "required": ["name", "size"], "additionalProperties": false}}'
)
# in the words of both
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.9, "top_p": 0.8, "top_k": 40, "min_p": 0.01, "seed": 3},
    "typical": {"temperature": 1.2, "typical_p": 0.6, "seed": 4},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2, "seed": 5},
    "biased": {"logit_bias": {19: 6.0, 300: -100.0}, "temperature": 0.0},
    "allowed": {"allowed_token_ids": [5, 300, 301, 2000], "seed": 6},
    "stopped": {"stop": ["e", "的"], "min_tokens": 3, "include_stop_str_in_output": True, "seed": 7},
    "choices": {"n": 3, "seed": 8},
    "best": {"n": 2, "best_of": 4, "seed": 9},
    "beams": {"use_beam_search": True, "best_of": 4, "n": 2, "length_penalty": 0.5, "early_stopping": "never"},
    "json": {"guided_json": SCHEMA, "max_tokens": 60, "seed": 10},
    "regex": {"guided_regex": r"[a-zä]{3,8}-\d{2}", "seed": 11},
    "choice": {"guided_choice": ["Nürnberg", "北京"], "seed": 12},
    "grammar": {"guided_grammar": 'start: "a" | "b" start', "seed": 13},
    "json of beams": {"guided_json": SCHEMA, "use_beam_search": True, "best_of": 3, "max_tokens": 40},
    "log-probabilities": {"logprobs": 3, "prompt_logprobs": 2, "seed": 14},
}
TOOLS = {"get_weather": SCHEMA, "get_time": '{"type": "object", "properties": {}, "additionalProperties": false}'}
CHOICES: dict[str, tuple[object, pb.ToolChoice]] = {
    "auto": ("auto", pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO)),
    "required": ("required", pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)),
    "none": ("none", pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)),
    "named": ({"type": "function", "function": {"name": "get_weather"}}, pb.ToolChoice(function="get_weather")),
}


@pytest.fixture(scope="module")
def server(smollm2_file) -> Iterator[Served]:
    with served(smollm2_file, "--max-model-len", "1024", "--tool-call-parser", "hermes") as running:
        yield running


@pytest.fixture(scope="module")
def stub(server) -> Iterator[PolyServeStub]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield PolyServeStub(channel)


def post(server: Served, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = (
        httpx.post(f"{server.url}/v1/{path}", json=body, timeout=TIMEOUT_S).raise_for_status().json()
    )
    return answer


def as_message(params: dict[str, Any]) -> pb.SamplingParams:
    values = dict(params)
    if "guided_choice" in values:
        values["guided_choice"] = pb.Choices(choices=values["guided_choice"])
    if "early_stopping" in values:
        values["early_stopping"] = pb.EARLY_STOPPING_NEVER
    return pb.SamplingParams(**values)


def gathered(events: Any) -> dict[int, dict[str, Any]]:
    """What a stream says of each choice."""
    found: dict[int, dict[str, Any]] = defaultdict(lambda: {"text": "", "token_ids": [], "logprobs": [], "calls": []})
    for event in events:
        if event.WhichOneof("event") != "delta":
            continue
        delta, choice = event.delta, found[event.delta.choice]
        choice["text"] += delta.text
        choice["token_ids"] += delta.token_ids
        choice["logprobs"] += [entry.logprob for entry in delta.logprobs]
        for call in delta.tool_calls:
            if call.HasField("name"):
                choice["calls"].append([call.name, ""])
            choice["calls"][call.index][1] += call.arguments
        if delta.finish_reason:
            choice["finish"] = pb.FinishReason.Name(delta.finish_reason).removeprefix("FINISH_REASON_").lower()
    return dict(sorted(found.items()))


@pytest.mark.parametrize("feature", PARAMS)
def test_completions(feature, server, stub):
    params = {"max_tokens": 24, **PARAMS[feature]}
    message = as_message(params)
    request = pb.GenerateRequest(text=PROMPT, params=message)
    found = gathered(stub.Generate(request, timeout=TIMEOUT_S))
    answer = post(server, "completions", {"prompt": PROMPT, "return_token_ids": True, **params})
    assert list(found) == [choice["index"] for choice in answer["choices"]]
    for choice in answer["choices"]:
        mine = found[choice["index"]]
        assert (mine["token_ids"], mine["text"], mine["finish"]) == (
            choice["token_ids"],
            choice["text"],
            choice["finish_reason"],
        )
        if choice["logprobs"] is not None:
            assert mine["logprobs"] == choice["logprobs"]["token_logprobs"]


@pytest.mark.parametrize("name", CHOICES)
def test_calls_of_functions(name, server, stub):
    over_http, over_grpc = CHOICES[name]
    asked = "What is the weather like?"
    tools = [pb.Tool(name=tool, parameters=schema) for tool, schema in TOOLS.items()]
    message = pb.ChatMessage(role=pb.ChatMessage.ROLE_USER, content=asked)
    params = pb.SamplingParams(seed=5, max_tokens=100)
    request = pb.ChatRequest(messages=[message], tools=tools, tool_choice=over_grpc, params=params)
    (mine,) = gathered(stub.Chat(request, timeout=TIMEOUT_S)).values()
    functions = [
        {"type": "function", "function": {"name": tool, "parameters": json.loads(schema)}}
        for tool, schema in TOOLS.items()
    ]
    body = {"messages": [{"role": "user", "content": asked}], "tools": functions, "tool_choice": over_http}
    (choice,) = post(server, "chat/completions", {**body, "seed": 5, "max_tokens": 100, "return_token_ids": True})[
        "choices"
    ]
    calls = [
        [call["function"]["name"], call["function"]["arguments"]] for call in choice["message"].get("tool_calls") or ()
    ]
    assert mine["token_ids"] == choice["token_ids"]
    assert (mine["calls"], mine["text"]) == (calls, choice["message"]["content"] or "")
    assert bool(calls) == (name in ("required", "named")) or name == "auto"


def test_scores_and_vectors(server, stub):
    texts = [("Die Stadt", " am Fluss"), ("", "河边的城市")]
    inputs = [pb.ScoreInput(context=context, continuation=continuation) for context, continuation in texts]
    found = stub.Score(pb.ScoreRequest(inputs=inputs), timeout=TIMEOUT_S).scores
    body = {"inputs": [{"context": context, "continuation": continuation} for context, continuation in texts]}
    expected = post(server, "score", body)["data"]
    assert [list(score.token_logprobs) for score in found] == [score["token_logprobs"] for score in expected]
    vectors = stub.Embed(pb.EmbedRequest(inputs=[pb.EmbedInput(text=PROMPT)]), timeout=TIMEOUT_S).embeddings
    assert list(vectors[0].values) == post(server, "embeddings", {"input": PROMPT})["data"][0]["embedding"]
