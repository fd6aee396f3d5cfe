"""/metrics: numbers that add up."""

from collections.abc import Iterator

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from polyserve.errors import InternalError
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
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


def test_refused_requests_count_nothing(fresh: LiveServer) -> None:
    before = numbers(fresh)
    assert httpx.post(f"{fresh.url}/v1/completions", json={"prompt": "a", "n": 0}).status_code == 400
    assert numbers(fresh) == before
