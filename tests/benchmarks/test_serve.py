"""`polyserve bench serve` against a server with a fake engine, and its figures on times that are known."""

import asyncio
import json
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest

from polyserve_benchmarks.serve.clients import Timed
from polyserve_benchmarks.serve.figures import Point, figures, quantile, table
from polyserve_benchmarks.serve.load import Load, arrivals, requests_of
from polyserve_benchmarks.serve.run import run
from support.live_server import LiveServer, live_server

VLLM_KEYS = {
    "date", "backend", "model_id", "tokenizer_id", "num_prompts", "request_rate", "burstiness", "max_concurrency",
    "duration", "completed", "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput",
    "output_throughput", "total_token_throughput", "input_lens", "output_lens", "ttfts", "itls", "generated_texts",
    "errors",
    *(f"{kind}_{metric}_ms" for kind in ("mean", "median", "std", "p99") for metric in ("ttft", "tpot", "itl", "e2el")),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as running:
        yield running


def load_of(server: LiveServer, backend: str, **more: object) -> Load:
    address = server.grpc_address if backend == "grpc" else server.url
    lengths = {"random_input_len": 4, "random_output_len": 6}
    return Load(base_url=address, backend=backend, num_prompts=5, **{**lengths, **more})


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "grpc"])
def test_every_protocol_is_measured_with_vllms_keys(server, tmp_path: Path, capsys, backend):
    out = tmp_path / "all.json"
    document = asyncio.run(run(load_of(server, backend, out=str(out), goodput=["ttft:60000"])))
    [whole] = json.loads(out.read_text())["results"]
    assert set(whole) >= VLLM_KEYS
    assert (document["completed"], document["failed"], document["total_output_tokens"]) == (5, 0, 30)
    assert document["request_goodput"] == pytest.approx(document["request_throughput"])
    assert whole["output_lens"] == [6] * 5
    assert all(whole["generated_texts"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "============ Serving Benchmark Result ============"
    assert json.loads(printed[-1])["completed"] == 5


def test_several_loads_are_measured_in_turn_and_drawn(server, tmp_path: Path):
    picture = tmp_path / "latency.png"
    document = asyncio.run(run(load_of(server, "openai", max_concurrency=[1, 2, 5], plot=str(picture))))
    assert [result["max_concurrency"] for result in document["results"]] == [1, 2, 5]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_request_that_fails_is_counted_and_left_out(server):
    document = asyncio.run(run(load_of(server, "openai", random_range_ratio=0.9, random_input_len=90)))
    assert document["completed"] + document["failed"] == 5
    assert document["failed"] > 0


def test_further_fields_go_with_every_request(server):
    asyncio.run(run(load_of(server, "openai", extra_body='{"logprobs": 2, "temperature": 0.5}')))
    assert {(params.logprobs, params.temperature) for params in server.llm.seen[-5:]} == {(2, 0.5)}


def test_figures_are_those_of_the_times():
    timed = [
        Timed(prompt_tokens=10, output_tokens=3, ttft=0.1, itl=[0.2, 0.4], latency=0.7, text="abc"),
        Timed(prompt_tokens=10, output_tokens=1, ttft=0.3, latency=0.3, text="a"),
        Timed(error="gone"),
    ]
    load = Load(goodput=["ttft:200", "tpot:500"], metric_percentiles=["50", "100"])
    result = figures(load, Point(inf, None, 2.0, timed, front_seconds=0.001))
    assert (result["completed"], result["failed"], result["request_goodput"]) == (2, 1, 0.5)
    assert (result["mean_ttft_ms"], result["mean_tpot_ms"]) == pytest.approx((200, 300))
    assert (result["mean_itl_ms"], result["p100_itl_ms"], result["median_e2el_ms"]) == pytest.approx((300, 400, 500))
    assert (result["output_throughput"], result["total_token_throughput"]) == (2.0, 12.0)
    assert result["front_us_per_token"] == pytest.approx(250)
    assert "P100 ITL (ms):                           400.00" in table(load, result).splitlines()


def test_quantiles_lie_between_neighbours():
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0, 0.25, 0.5, 1)] == [1, 1.5, 2, 3]
    assert quantile([], 0.5) == 0


def test_arrivals_come_at_the_rate_that_was_asked():
    even = arrivals(Load(num_prompts=2000, request_rate=["50"], burstiness=1e6), 50.0)
    random = arrivals(Load(num_prompts=2000, request_rate=["50"]), 50.0)
    assert even[-1] == pytest.approx(1999 / 50, rel=0.01)
    assert random[-1] == pytest.approx(1999 / 50, rel=0.1)
    assert set(arrivals(Load(num_prompts=3), inf)) == {0.0}


def test_prompts_vary_in_length_and_are_the_same_each_time():
    load = Load(num_prompts=200, random_input_len=100, random_range_ratio=0.5)
    lengths = {len(asked.prompt.split()) for asked in requests_of(load, salt=0)}
    assert min(lengths) >= 50
    assert max(lengths) <= 150
    assert len(lengths) > 20
    assert requests_of(load, salt=0) == requests_of(load, salt=0) != requests_of(load, salt=1)


@pytest.mark.parametrize("wrong", [
    {"goodput": ["itl:5"]}, {"goodput": ["ttft:x"]}, {"request_rate": ["0"]}, {"request_rate": ["fast"]},
    {"backend": "smtp"}, {"num_prompts": 0}, {"random_range_ratio": 1.0},
    {"request_rate": ["1", "2"], "max_concurrency": [1, 2]},
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Load(**wrong)
