"""polyserve.v1.PolyServe over a real channel."""

import time

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polyserve.errors import EngineDead, InternalError
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import BOS, EOS, REPLY, FakeLLM, logprob_of
from support.live_server import LiveServer, live_server, wait_until

USER = pb.ChatMessage(role=pb.ChatMessage.ROLE_USER, content="hi")


def generate(stub: PolyServeStub, text: str = "hi", **params: object) -> list[pb.GenerateResponse]:
    return list(stub.Generate(pb.GenerateRequest(text=text, params=pb.SamplingParams(**params))))


def text_of(events: list[pb.GenerateResponse], choice: int = 0) -> str:
    return "".join(event.delta.text for event in events if event.delta.choice == choice)


def refusal_of(stub: PolyServeStub, **fields: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(pb.GenerateRequest(**fields)))
    return caught.value


def test_a_stream_is_one_prompt_then_deltas_then_one_usage(stub: PolyServeStub) -> None:
    events = generate(stub, max_tokens=100)
    assert [event.WhichOneof("event") for event in events] == ["prompt", *["delta"] * (len(events) - 2), "usage"]
    assert list(events[0].prompt.token_ids) == [BOS, *b"hi"]
    assert (events[0].prompt.model, events[0].prompt.system_fingerprint) == ("fake", "fake-numerics")
    assert text_of(events) == REPLY
    assert events[-1].usage == pb.Usage(prompt_tokens=3, completion_tokens=len(REPLY.encode()) + 1, cached_tokens=4)
    assert len({event.request_id for event in events}) == 1


def test_the_reason_of_the_end_is_typed(stub: PolyServeStub) -> None:
    assert generate(stub, max_tokens=2)[-2].delta.finish_reason == pb.FINISH_REASON_LENGTH
    ended = generate(stub, max_tokens=50)[-2].delta
    assert (ended.finish_reason, ended.WhichOneof("stop_reason")) == (pb.FINISH_REASON_STOP, None)
    assert list(ended.token_ids) == [EOS]
    assert generate(stub, max_tokens=50, stop=["aus"])[-2].delta.stop_string == "aus"
    assert generate(stub, max_tokens=50, stop_token_ids=[ord("e")])[-2].delta.stop_token_id == ord("e")


def test_token_ids_are_taken_as_they_are(stub: PolyServeStub) -> None:
    events = list(stub.Generate(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6]))))
    assert list(events[0].prompt.token_ids) == [5, 6]


def test_choices_are_told_apart(stub: PolyServeStub) -> None:
    events = generate(stub, n=2, max_tokens=3)
    assert (text_of(events, 0), text_of(events, 1)) == ("Grü"[:2] + "\ufffd", "rü")


def test_what_is_not_set_has_the_defaults_of_http(stub: PolyServeStub, llm: FakeLLM, server: LiveServer) -> None:
    generate(stub)
    httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi"})
    list(stub.Chat(pb.ChatRequest(messages=[USER])))
    httpx.post(f"{server.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert llm.seen[0] == llm.seen[1]
    assert llm.seen[2] == llm.seen[3]


def test_options_reach_the_engine_exactly(stub: PolyServeStub, llm: FakeLLM) -> None:
    options = {
        "n": 2,
        "max_tokens": 5,
        "min_tokens": 1,
        "temperature": 0.7,
        "top_k": -1,
        "top_p": 0.9,
        "min_p": 0.05,
        "typical_p": 0.8,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "logit_bias": {5: -1.5},
        "allowed_token_ids": [1, 2],
        "seed": -5,
        "stop": ["x"],
        "include_stop_str_in_output": True,
        "stop_token_ids": [7],
        "ignore_eos": True,
        "logprobs": 2,
        "prompt_logprobs": 0,
        "skip_special_tokens": False,
        "priority": -3,
        "cache_salt": "ours",
    }
    beams = {
        "use_beam_search": True, "best_of": 3, "length_penalty": 0.5, "early_stopping": pb.EARLY_STOPPING_NEVER,
    }  # fmt: skip
    grammars = {field.name for field in pb.SamplingParams.DESCRIPTOR.oneofs_by_name["grammar"].fields}
    assert {*options, *beams, *grammars} == {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    generate(stub, **options)
    assert {name: getattr(llm.seen[0], name) for name in options} == options
    generate(stub, **beams)
    assert {name: getattr(llm.seen[1], name) for name in beams} == beams | {"early_stopping": "never"}


def test_a_temperature_of_zero_is_not_the_default(stub: PolyServeStub, llm: FakeLLM) -> None:
    generate(stub, temperature=0)
    assert llm.seen[0].greedy


def test_logprobs_are_those_of_http(stub: PolyServeStub, server: LiveServer) -> None:
    events = generate(stub, max_tokens=3, logprobs=2, prompt_logprobs=1)
    body = {"prompt": "hi", "max_tokens": 3, "logprobs": 2, "echo": True}
    arrays = httpx.post(f"{server.url}/v1/completions", json=body).json()["choices"][0]["logprobs"]
    entries = [*events[0].prompt.logprobs, *(entry for event in events for entry in event.delta.logprobs)]
    assert [entry.logprob if entry.HasField("logprob") else None for entry in entries] == arrays["token_logprobs"]
    assert b"".join(entry.bytes for entry in entries) == b"<s>hi" + REPLY.encode()[:3]


def test_alternatives_are_best_first(stub: PolyServeStub) -> None:
    entry = generate(stub, max_tokens=1, logprobs=5)[1].delta.logprobs[0]
    values = [other.logprob for other in entry.top]
    assert values == sorted(values, reverse=True)
    assert values == [logprob_of(other.token_id, 3) for other in entry.top]


def test_chat_writes_the_prompt_through_the_template(stub: PolyServeStub) -> None:
    system = pb.ChatMessage(role=pb.ChatMessage.ROLE_DEVELOPER, content="be kind")
    events = list(stub.Chat(pb.ChatRequest(messages=[system, USER], params=pb.SamplingParams(max_tokens=100))))
    assert bytes(events[0].prompt.token_ids).decode() == "[system]be kind\n[user]hi\n[assistant]"
    assert text_of(events) == REPLY


def test_tool_calls_and_their_results_reach_the_template(stub: PolyServeStub) -> None:
    call = pb.ToolCall(id="c1", name="f", arguments='{"x": 1}')
    messages = [
        USER,
        pb.ChatMessage(role=pb.ChatMessage.ROLE_ASSISTANT, tool_calls=[call]),
        pb.ChatMessage(role=pb.ChatMessage.ROLE_TOOL, content="2", tool_call_id="c1"),
    ]
    prompt = bytes(next(stub.Chat(pb.ChatRequest(messages=messages))).prompt.token_ids).decode()
    assert prompt == '[user]hi\n[assistant](c1 {"name": "f", "arguments": {"x": 1}})\n[tool c1]2\n[assistant]'


def test_chat_can_continue_the_final_message(stub: PolyServeStub) -> None:
    request = pb.ChatRequest(messages=[USER], continue_final_message=True)
    assert bytes(next(stub.Chat(request)).prompt.token_ids).decode() == "[user]hi"


def test_tokenize_and_detokenize_are_inverse(stub: PolyServeStub) -> None:
    tokens = stub.Tokenize(pb.TokenizeRequest(text="né 京", add_special_tokens=False))
    assert b"".join(tokens.token_bytes).decode() == "né 京"
    assert stub.Detokenize(pb.DetokenizeRequest(token_ids=tokens.token_ids)).text == "né 京"
    assert tokens.max_model_len == 400


def test_a_conversation_can_be_tokenized(stub: PolyServeStub) -> None:
    tokens = stub.Tokenize(pb.TokenizeRequest(conversation=pb.Conversation(messages=[USER])))
    assert b"".join(tokens.token_bytes).decode() == "[user]hi\n[assistant]"


def test_get_model_says_what_is_served(stub: PolyServeStub) -> None:
    assert stub.GetModel(pb.GetModelRequest()) == pb.GetModelResponse(
        model="fake",
        max_model_len=400,
        vocab_size=258,
        system_fingerprint="fake-numerics",
        bos_token_id=BOS,
        eos_token_ids=[EOS],
    )


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({"params": pb.SamplingParams(temperature=-1)}, {"temperature": -1.0}),
        ({"params": pb.SamplingParams(temperature=float("nan"))}, None),
        ({"params": pb.SamplingParams(n=0)}, {"n": 0}),
        ({"params": pb.SamplingParams(max_tokens=0)}, {"max_tokens": 0}),
        ({"params": pb.SamplingParams(logprobs=21)}, {"logprobs": 21}),
        ({"params": pb.SamplingParams(stop=[""])}, {"stop": [""]}),
        ({"params": pb.SamplingParams(logit_bias={300: 1})}, {"logit_bias": {"300": 1}}),
        ({"params": pb.SamplingParams(stop_token_ids=[2**32 - 1])}, {"stop_token_ids": [2**32 - 1]}),
        ({"token_ids": pb.TokenIds(ids=[258])}, {"prompt": [258]}),
        ({"token_ids": pb.TokenIds()}, {"prompt": []}),
        ({"text": "x" * 500}, {"prompt": "x" * 500}),
    ],
    ids=str,
)
def test_a_faulty_request_is_refused_with_the_words_of_http(
    server: LiveServer, stub: PolyServeStub, llm: FakeLLM, fields: dict, body: dict | None
) -> None:
    error = refusal_of(stub, **({"text": "hi"} if "token_ids" not in fields else {}) | fields)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not llm.seen
    if body is not None:
        response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi", **body})
        assert error.details() == response.json()["error"]["message"]


def test_a_prompt_is_required(stub: PolyServeStub) -> None:
    assert "text and token_ids" in refusal_of(stub).details()


def test_another_models_name_is_not_found(stub: PolyServeStub) -> None:
    error = refusal_of(stub, text="hi", model="gpt-9")
    assert (error.code(), "'gpt-9'" in error.details()) == (grpc.StatusCode.NOT_FOUND, True)


def test_a_message_needs_a_role(stub: PolyServeStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Chat(pb.ChatRequest(messages=[USER, pb.ChatMessage(content="x")])))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "messages[1].role must be" in caught.value.details()


@pytest.mark.parametrize("inside", [False, True])
def test_a_field_of_another_version_is_refused(channel: grpc.Channel, inside: bool) -> None:
    unknown = b"\xf8\x3f\x01"  # field 1023 = 1
    data = pb.GenerateRequest(text="hi").SerializeToString()
    data += b"\x22\x03" + unknown if inside else unknown
    call = channel.unary_stream(
        "/polyserve.v1.PolyServe/Generate",
        request_serializer=lambda request: request,
        response_deserializer=pb.GenerateResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(call(data))
    message = "SamplingParams" if inside else "GenerateRequest"
    assert caught.value.details() == f"{message} has the unknown field number 1023"


def test_the_clients_deadline_aborts_the_request(stub: PolyServeStub, llm: FakeLLM) -> None:
    llm.hold(2)
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(pb.GenerateRequest(text="hi"), timeout=0.3))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 2
    wait_until(lambda: len(llm.aborted) == 1)


@pytest.mark.parametrize("num_tokens", [0, 2])
def test_cancelling_aborts_the_request(stub: PolyServeStub, llm: FakeLLM, num_tokens: int) -> None:
    llm.hold(num_tokens)
    call = stub.Generate(pb.GenerateRequest(text="hi"))
    wait_until(lambda: len(llm.live) == 1)
    call.cancel()
    wait_until(lambda: len(llm.aborted) == 1)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineDead("the engine process ended"), grpc.StatusCode.UNAVAILABLE),
        (InternalError("the step failed"), grpc.StatusCode.INTERNAL),
    ],
)
def test_an_error_in_mid_stream_ends_it_with_its_status(
    stub: PolyServeStub, llm: FakeLLM, error: Exception, code: grpc.StatusCode
) -> None:
    llm.fail(2, error)
    events = stub.Generate(pb.GenerateRequest(text="hi"))
    with pytest.raises(grpc.RpcError) as caught:
        list(events)
    assert (caught.value.code(), caught.value.details()) == (code, str(error))


def test_an_unexpected_fault_tells_nothing(stub: PolyServeStub, llm: FakeLLM) -> None:
    llm.fail(2, RuntimeError("secret path /home/x"))
    error = refusal_of(stub, text="hi")
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "the server met an internal error")


@pytest.mark.parametrize("service", ["", "polyserve.v1.PolyServe"])
def test_health_says_serving(channel: grpc.Channel, service: str) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_when_the_engine_dies_every_call_ends() -> None:
    with live_server() as server, grpc.insecure_channel(server.grpc_address) as channel:
        server.llm.hold(2)
        events = PolyServeStub(channel).Generate(pb.GenerateRequest(text="hi"))
        next(events)
        server.die()
        with pytest.raises(grpc.RpcError) as caught:
            list(events)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
