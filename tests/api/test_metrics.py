"""/metrics: numbers that add up."""

from collections.abc import Iterator
from typing import cast

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from polyserve.api.metric_names import NAMES
from polyserve.api.metrics import Metrics
from polyserve.api.scripts import script_of_text
from polyserve.errors import InternalError
from polyserve.sampling_params import SamplingParams
from polyserve.service.async_llm import AsyncLLM, ChoiceDelta
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.fake_llm import FakeLLM
from support.live_server import LiveServer, live_server, wait_until


@pytest.fixture
def fresh() -> Iterator[LiveServer]:
    with live_server() as server:
        yield server


def numbers(server: LiveServer) -> dict[str, float]:
    """Every sample by its name and its labels, without the histograms' buckets."""
    text = httpx.get(f"{server.url}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for sample in samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_each_token_is_counted_once_over_both_protocols(fresh: LiveServer) -> None:
    for stream in (False, True):
        body = {"prompt": ["ab", "c"], "n": 2, "max_tokens": 5, "stream": stream}
        httpx.post(f"{fresh.url}/v1/completions", json=body)
    with grpc.insecure_channel(fresh.grpc_address) as channel:
        list(PolyServeStub(channel).Generate(pb.GenerateRequest(text="abc", params=pb.SamplingParams(max_tokens=7))))
    got = numbers(fresh)
    num_prompts, num_choices = 5, 9
    num_tokens = 2 * 4 * 5 + 7
    assert got["polyserve_prompt_tokens_total"] == 2 * (3 + 2) + 4
    assert got["polyserve_generation_tokens_total"] == num_tokens
    assert got["polyserve_request_success_total length"] == num_choices
    assert got["polyserve_time_to_first_token_seconds_count"] == num_prompts
    assert got["polyserve_inter_token_latency_seconds_count"] == num_tokens - num_choices
    assert got["polyserve_e2e_request_latency_seconds_count"] == num_prompts


def test_ends_are_told_apart(fresh: LiveServer) -> None:
    def complete(**body: object) -> None:
        httpx.post(f"{fresh.url}/v1/completions", json={"prompt": "a", **body}, timeout=0.3)

    complete(max_tokens=100)
    complete(max_tokens=100, stop="aus")
    complete(max_tokens=2)
    fresh.llm.fail(1, InternalError("no"))
    complete(n=2)
    fresh.llm.reset()
    fresh.llm.hold(1)
    with pytest.raises(httpx.ReadTimeout):
        complete()
    wait_until(lambda: bool(fresh.llm.aborted))
    got = numbers(fresh)
    ends = {reason: got[f"polyserve_request_success_total {reason}"] for reason in ("stop", "length", "error", "abort")}
    assert ends == {"stop": 2, "length": 1, "error": 2, "abort": 1}


def test_the_engines_counts_are_shown(server: LiveServer) -> None:
    got = numbers(server)
    assert got["polyserve_num_requests_running"] == 0
    assert got["polyserve_num_requests_waiting"] == 2
    assert got["polyserve_kv_cache_usage_ratio"] == 0.25
    assert got["polyserve_prefix_cache_queries_total"] == 40
    assert got["polyserve_prefix_cache_hits_total"] == 10
    assert got["polyserve_num_preemptions_total"] == 3


def test_a_refused_request_counts_as_that_alone(fresh: LiveServer) -> None:
    before = numbers(fresh)
    assert httpx.post(f"{fresh.url}/v1/completions", json={"prompt": "a", "n": 0}).status_code == 400
    after = numbers(fresh)
    changed = {name for name in after if after[name] != before[name] and "event_loop_lag" not in name}
    assert changed == {"polyserve_requests_refused_total invalid"}


def test_tokens_and_characters_are_counted_by_script(fresh: LiveServer) -> None:
    body = {"prompt": ["Привет, мир", "東京", "123"], "max_tokens": 5}
    httpx.post(f"{fresh.url}/v1/completions", json=body)
    got = numbers(fresh)
    assert got["polyserve_characters_total prompt cyrillic"] == 11
    assert got["polyserve_characters_total prompt han"] == 2
    assert got["polyserve_tokens_total prompt han"] == 1 + len("東京".encode())
    assert got["polyserve_characters_total prompt common"] == 3
    assert sum(value for name, value in got.items() if name.startswith("polyserve_tokens_total generation")) == 15


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello", "latin"),
        ("xin chào các bạn", "latin"),
        ("北京", "han"),
        ("こんにちは", "hiragana"),
        ("สวัสดี", "thai"),
        ("مرحبا", "arabic"),
        ("안녕", "hangul"),
        ("नमस्ते", "devanagari"),
        ("ᚠᚢᚦ", "other"),
        ("1 + 1 = 👍", "common"),
        ("", "common"),
        ("a" + "я" * 10_000, "cyrillic"),
    ],
)
def test_a_text_has_the_script_of_most_letters(text: str, script: str) -> None:
    assert script_of_text(text) == script


def test_the_loops_lag_is_measured(fresh: LiveServer) -> None:
    wait_until(lambda: numbers(fresh)["polyserve_event_loop_lag_seconds_count"] > 0)


def test_vllms_names_show_the_same_numbers() -> None:
    llm = FakeLLM()
    metrics = Metrics(cast(AsyncLLM, llm), model_name="fake", vllm_names=True)
    ticket = llm.admission.reserve(3, SamplingParams(), tenant=None, num_characters=3)
    with metrics.request(0.0, "abc", ticket, 1) as record:
        record.delta(ChoiceDelta(0, "seven", list(range(7)), None, "stop", None, None, 0))
    families = {
        family.name: family
        for family in text_string_to_metric_families(metrics.exposition().decode())
        if family.name.startswith("vllm:")
    }
    wanted = {name for names in NAMES.values() for name in names}
    assert families.keys() == {f"vllm:{name}" for name in wanted}
    assert {sample.labels["model_name"] for family in families.values() for sample in family.samples} == {"fake"}
    assert families["vllm:generation_tokens"].samples[0].value == 7
    assert families["vllm:kv_cache_usage_perc"].samples[0].value == 0.25
    (count,) = (s.value for s in families["vllm:time_to_first_token_seconds"].samples if s.name.endswith("_count"))
    assert count == 1


def test_each_name_of_vllms_stands_for_a_metric_that_exists(server: LiveServer) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    ours = {family.name.removeprefix("polyserve_") for family in text_string_to_metric_families(text)}
    assert NAMES.keys() <= ours
    assert "vllm:" not in text
