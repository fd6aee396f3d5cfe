"""`polyserve serve` with a real engine process behind it: from the ready line to the exit code."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from polyserve.api.start import run
from polyserve.config import EngineConfig, ServerConfig
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.checkpoints import make_checkpoint
from support.live_server import LiveServer, events_of, wait_until
from support.served_model import Served, engine_of, served

POLYSERVE = Path(sys.executable).with_name("polyserve")
PATIENCE_S = 60.0
LONG = {"prompt": "The capital of", "max_tokens": 100, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.fixture(scope="module")
def running(checkpoint: Path) -> Iterator[Served]:
    with served(checkpoint, "--threads", "1") as server:
        yield server


def test_both_protocols_give_the_same_tokens_and_the_same_numbers(running: Served) -> None:
    options = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.95, "seed": 7, "logprobs": 3}
    body = {"prompt": "Die Hauptstadt", "return_token_ids": True, **options}
    choice = httpx.post(f"{running.url}/v1/completions", json=body, timeout=PATIENCE_S).json()["choices"][0]
    with grpc.insecure_channel(running.grpc_address) as channel:
        request = pb.GenerateRequest(text="Die Hauptstadt", params=pb.SamplingParams(**options))
        deltas = [event.delta for event in PolyServeStub(channel).Generate(request) if event.HasField("delta")]
    assert [token_id for delta in deltas for token_id in delta.token_ids] == choice["token_ids"]
    assert "".join(delta.text for delta in deltas) == choice["text"]
    values = [entry.logprob for delta in deltas for entry in delta.logprobs]
    assert values == choice["logprobs"]["token_logprobs"]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"n": 3, "top_k": 20},
        {"min_p": 0.01, "typical_p": 0.9},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": -0.2},
        {"logit_bias": {40: 4.0, 41: -100.0}},
        {"allowed_token_ids": [30, 31, 32, 33]},
        {"stop": ["e", "的"], "include_stop_str_in_output": True},
        {"stop_token_ids": [101, 102, 103], "min_tokens": 3},
        {"ignore_eos": True, "skip_special_tokens": False},
        {"use_beam_search": True, "n": 2, "best_of": 4, "length_penalty": 0.6},
        {"n": 1, "best_of": 3},
        {"guided_regex": "[a-c]{4,9}"},
        {"guided_choice": {"choices": ["ja", "nein"]}},
    ],
    ids=str,
)
def test_every_option_gives_the_same_tokens_over_both_protocols(running: Served, options: dict) -> None:
    options = {"max_tokens": 12, "seed": 5, **options}
    spelt = {  # as JSON has no keys but strings, and no oneof of lists
        "logit_bias": {str(token_id): bias for token_id, bias in options.get("logit_bias", {}).items()},
        "guided_choice": options.get("guided_choice", {}).get("choices"),
    }
    body = {"prompt": "Die Hauptstadt", "return_token_ids": True, **options, **spelt}
    answer = httpx.post(f"{running.url}/v1/completions", json=body, timeout=PATIENCE_S).json()
    with grpc.insecure_channel(running.grpc_address) as channel:
        request = pb.GenerateRequest(text="Die Hauptstadt", params=pb.SamplingParams(**options))
        deltas = [event.delta for event in PolyServeStub(channel).Generate(request) if event.HasField("delta")]
    for choice in answer["choices"]:
        own = [delta for delta in deltas if delta.choice == choice["index"]]
        assert [token_id for delta in own for token_id in delta.token_ids] == choice["token_ids"]
        assert "".join(delta.text for delta in own) == choice["text"]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_both_protocols_give_the_same_vectors(running: Served, pooling: str) -> None:
    texts = ["Die Hauptstadt von Deutschland", "北京"]
    body = {"input": texts, "pooling": pooling, "dimensions": 10}
    data = httpx.post(f"{running.url}/v1/embeddings", json=body, timeout=PATIENCE_S).json()["data"]
    with grpc.insecure_channel(running.grpc_address) as channel:
        inputs = [pb.EmbedInput(text=text) for text in texts]
        request = pb.EmbedRequest(inputs=inputs, pooling=f"POOLING_{pooling.upper()}", dimensions=10)
        answer = PolyServeStub(channel).Embed(request)
    assert [list(one.values) for one in answer.embeddings] == [item["embedding"] for item in data]
    assert data[0]["embedding"] != data[1]["embedding"]


def test_a_salt_keeps_cached_prompts_apart_over_both_protocols(running: Served) -> None:
    prompt = list(range(100))

    def cached_over_http(salt: str | None) -> int:
        body = {"prompt": prompt, "max_tokens": 1, "cache_salt": salt}
        answer = httpx.post(f"{running.url}/v1/completions", json=body, timeout=PATIENCE_S).json()
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    def cached_over_grpc(salt: str | None) -> int:
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=prompt), params=pb.SamplingParams(max_tokens=1, cache_salt=salt)
        )
        with grpc.insecure_channel(running.grpc_address) as channel:
            return [event.usage.cached_tokens for event in PolyServeStub(channel).Generate(request)][-1]

    assert [cached_over_http("a"), cached_over_http("a"), cached_over_grpc("a")] == [0, 96, 96]
    assert [cached_over_grpc("b"), cached_over_grpc("b"), cached_over_http("b")] == [0, 96, 96]
    assert [cached_over_http(None), cached_over_grpc(None)] == [0, 96]


def test_a_seeded_answer_is_the_same_streamed(running: Served) -> None:
    body = {"messages": [{"role": "user", "content": "北京"}], "max_tokens": 8, "seed": 3, "n": 2}
    whole = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=PATIENCE_S).json()
    texts = ["", ""]
    with httpx.stream(
        "POST", f"{running.url}/v1/chat/completions", json={**body, "stream": True}, timeout=PATIENCE_S
    ) as response:
        for chunk in events_of(response)[:-1]:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]


def test_leaving_a_stream_frees_its_blocks(running: Served) -> None:
    with httpx.stream("POST", f"{running.url}/v1/completions", json=LONG, timeout=PATIENCE_S) as response:
        next(response.iter_raw())

    def idle() -> bool:
        metrics = httpx.get(f"{running.url}/metrics").text
        return "polyserve_num_requests_running 0.0" in metrics

    wait_until(idle)


def test_the_front_has_no_torch_in_it(running: Served) -> None:
    assert "libtorch" not in Path(f"/proc/{running.process.pid}/maps").read_text()


@pytest.mark.parametrize("name", ["port", "grpc_port"])
def test_a_port_in_use_is_one_clear_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"port": 0, "grpc_port": 0, name: taken.getsockname()[1]}
        code = asyncio.run(run(EngineConfig(model="nothing"), ServerConfig(**ports)))
    assert code == 1
    assert capsys.readouterr().err == f"polyserve: cannot listen at 127.0.0.1:{ports[name]}: Address already in use\n"


def test_an_address_that_is_none_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    config = ServerConfig(host="no.such.host.invalid", port=0, grpc_port=0)
    assert asyncio.run(run(EngineConfig(model="nothing"), config)) == 1
    error = capsys.readouterr().err
    assert error.startswith("polyserve: 'no.such.host.invalid' is no address to listen at: ")
    assert error.count("\n") == 1


def test_a_stream_goes_on_over_the_death_of_the_engine(checkpoint: Path) -> None:
    with served(checkpoint, "--threads", "1") as server:
        body = {**LONG, "n": 4, "seed": 3, "max_tokens": 300, "return_token_ids": True}
        url = f"{server.url}/v1/completions"
        whole = httpx.post(url, json={**body, "stream": False}, timeout=PATIENCE_S).json()["choices"]
        token_ids: list[list[int]] = [[], [], [], []]
        with httpx.stream("POST", url, json=body, timeout=PATIENCE_S) as response:
            events = (line.removeprefix("data: ") for line in response.iter_lines() if line)
            for number, event in enumerate(events):
                if number == 100:
                    engine_of(server.process.pid).kill()
                if event != "[DONE]":
                    (choice,) = json.loads(event)["choices"]
                    token_ids[choice["index"]] += choice["token_ids"]
        assert token_ids == [choice["token_ids"] for choice in whole]


def test_sigint_while_the_model_loads_ends_the_server_with_0(checkpoint: Path) -> None:
    command = [POLYSERVE, "serve", str(checkpoint), "--port", "0", "--grpc-port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        front = psutil.Process(process.pid)
        wait_until(lambda: any(engine.num_threads() > 1 for engine in front.children()))  # it knows what to load
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (0, "", "")


def test_sighup_reads_the_level_of_the_log_again(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    level = tmp_path / "level"
    level.write_text("error\n")
    with served(checkpoint, "--threads", "1", "--log-level-file", str(level)) as server:
        engine = engine_of(server.process.pid)
        capfd.readouterr()
        seen: list[str] = []

        def says(text: str) -> bool:
            seen.append(capfd.readouterr().err)
            return text in "".join(seen)

        level.write_text("nonsense")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: says("must hold one of debug, info, warning, error, got 'nonsense'"))
        level.write_text("info")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: says("reloaded at SIGHUP"))
        engine.kill()
        wait_until(lambda: says("engine: KV cache: "))


def test_the_ready_line_comes_with_a_command_that_works(server: LiveServer) -> None:
    ready, attempt = server.announced.splitlines()
    assert ready == f"PolyServe is ready: fake at {server.url} (HTTP) and {server.grpc_address} (gRPC)"
    result = subprocess.run(attempt.removeprefix("Try: "), shell=True, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("data: [DONE]\n\n")


def test_sigterm_ends_the_server_with_0_and_all_its_processes_too(running: Served) -> None:
    children = psutil.Process(running.process.pid).children()
    assert len(children) in (
        3,
        4,
    )  # the engine, the fork server, what renders chat templates, and, once asked, grammars
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(10) == 0
    assert not any(child.is_running() for child in children)
