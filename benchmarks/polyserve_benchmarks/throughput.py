"""Tokens a second of one model under a fixed random workload, beside what the machine's memory would allow.

Measured from outside, as a server sees it: the engine in its own process, requests through `AsyncLLM`, every answer
`output_len` tokens (greedy, end of sequence ignored). A short run of the same shape warms up before each measurement.

first token     from the moment all requests are sent to a stream's first token, prompt included
tokens/s        all generated tokens over the whole time, prompts included
prompt tokens/s all prompt tokens over the time until the last stream has its first token
step            median time between two tokens of a stream while every stream is generating
of the limit    weights read in one step / step, over the memory bandwidth measured in the same run
"""

import asyncio
import itertools
import json
import statistics
import time
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from polyserve.config import EngineConfig
from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams
from polyserve_benchmarks.machine import machine, num_cores, read_bandwidth, versions
from polyserve_benchmarks.workload import Workload, random_prompts

if TYPE_CHECKING:
    from polyserve.service.async_llm import AsyncLLM

WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of streams. Field names are those of vLLM's `bench serve` where the figure is the same."""

    num_streams: int
    duration: float  # seconds
    total_input_tokens: int
    total_output_tokens: int
    output_throughput: float  # tokens/s
    prompt_throughput: float  # tokens/s
    mean_ttft_ms: float
    median_ttft_ms: float
    max_ttft_ms: float
    median_step_ms: float | None  # None where answers are too short to see one
    percent_of_limit: float | None


@dataclass(frozen=True, slots=True)
class Limit:
    """What the memory allows: no step can be shorter than reading the weights once."""

    weight_bytes: int
    bytes_per_second: float

    def percent(self, step_seconds: float) -> float:
        return 100.0 * self.weight_bytes / step_seconds / self.bytes_per_second


async def run(config: EngineConfig, workload: Workload) -> None:
    """Measure each number of streams; print a line for each and, last, one JSON document."""
    from polyserve.model.families import read_config
    from polyserve.model.weights.resolve import resolve
    from polyserve.service.async_llm import AsyncLLM
    from polyserve_benchmarks.compare.cost import served_bytes

    path = resolve(config.model)
    model = read_config(path)
    _check_length(workload, config.max_model_len or model.max_len)
    limit = Limit(served_bytes(path, config), read_bandwidth(config.threads or num_cores()))
    llm = await AsyncLLM.start(config)
    try:
        print(_heading(config, workload, limit), flush=True)
        measurements = []
        for count in workload.num_streams:
            measurements.append(await _measure(llm, workload, count, limit))
            print(_row(measurements[-1], limit), flush=True)
    finally:
        await llm.close()
    document = {
        "benchmark": "throughput",
        "config": asdict(config),
        "workload": asdict(workload),
        "results": [asdict(measurement) for measurement in measurements],
        "weight_bytes_per_step": limit.weight_bytes,
        "memory_read_bytes_per_second": round(limit.bytes_per_second),
        "numerics_id": llm.numerics_id,
        "versions": versions(),
        "machine": machine(),
    }
    print(json.dumps(document))


async def _measure(llm: "AsyncLLM", workload: Workload, num_streams: int, limit: Limit) -> Measurement:
    sizes = {"length": workload.input_len, "vocab_size": llm.vocab_size}
    warm_up = random_prompts(num_streams, **sizes, seed=workload.seed + 1)
    await answer_all(llm, warm_up, min(WARM_UP_TOKENS, workload.output_len))
    prompts = random_prompts(num_streams, **sizes, seed=workload.seed)
    start = time.perf_counter()
    streams = await answer_all(llm, prompts, workload.output_len)
    return summary(start, streams, input_len=workload.input_len, limit=limit)


async def answer_all(llm: "AsyncLLM", prompts: list[list[int]], output_len: int) -> list[list[float]]:
    """Send all prompts at once. Returns for each stream the time at which each of its tokens arrived."""
    params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)
    return await asyncio.gather(
        *(_arrivals(llm, f"bench-{index}", prompt, params) for index, prompt in enumerate(prompts))
    )


async def _arrivals(llm: "AsyncLLM", request_id: str, prompt: list[int], params: SamplingParams) -> list[float]:
    arrivals: list[float] = []
    async with aclosing(llm.generate(request_id, prompt, params)) as deltas:
        async for delta in deltas:
            arrivals += [time.perf_counter()] * len(delta.token_ids)
    return arrivals


def summary(start: float, streams: list[list[float]], *, input_len: int, limit: Limit) -> Measurement:
    """The figures of one run, from the time it began and each stream's arrivals."""
    duration = max(arrivals[-1] for arrivals in streams) - start
    firsts = [arrivals[0] - start for arrivals in streams]
    steps = step_times(streams)
    step = statistics.median(steps) if steps else 0.0
    num_output = sum(len(arrivals) for arrivals in streams)
    num_input = input_len * len(streams)
    return Measurement(
        num_streams=len(streams),
        duration=duration,
        total_input_tokens=num_input,
        total_output_tokens=num_output,
        output_throughput=num_output / duration,
        prompt_throughput=num_input / max(firsts),
        mean_ttft_ms=1e3 * statistics.mean(firsts),
        median_ttft_ms=1e3 * statistics.median(firsts),
        max_ttft_ms=1e3 * max(firsts),
        median_step_ms=1e3 * step if step > 0 else None,  # 0: tokens that come two at a time
        percent_of_limit=limit.percent(step) if step > 0 else None,
    )


def step_times(streams: list[list[float]]) -> list[float]:
    """Seconds between two tokens of a stream, of every stream, while all of them generate."""
    together = max(arrivals[0] for arrivals in streams)
    ends = min(arrivals[-1] for arrivals in streams)
    return [
        later - earlier
        for arrivals in streams
        for earlier, later in itertools.pairwise(arrivals)
        if together <= earlier and later <= ends
    ]


def _check_length(workload: Workload, max_model_len: int) -> None:
    wanted = workload.input_len + workload.output_len
    if wanted > max_model_len:
        raise InvalidRequest(
            f"{workload.input_len} tokens in and {workload.output_len} out are {wanted} in all;"
            f" this model takes {max_model_len}"
        )


def _heading(config: EngineConfig, workload: Workload, limit: Limit) -> str:
    steps = limit.bytes_per_second / limit.weight_bytes
    return (
        f"{config.model}, {config.dtype}, {workload.input_len} tokens in, {workload.output_len} out, greedy\n"
        f"limit: {limit.weight_bytes / 1e9:.3f} GB of weights a step, memory read at"
        f" {limit.bytes_per_second / 1e9:.1f} GB/s: {steps:.1f} steps/s\n"
        "streams  tokens/s  prompt tokens/s  first token ms   step ms   GB/s  of the limit"
    )


def _row(measured: Measurement, limit: Limit) -> str:
    start = (
        f"{measured.num_streams:7d}  {measured.output_throughput:8.1f}  {measured.prompt_throughput:15.1f}"
        f"  {measured.median_ttft_ms:14.0f}"
    )
    if measured.median_step_ms is None or measured.percent_of_limit is None:
        return start
    speed = limit.weight_bytes / measured.median_step_ms / 1e6
    return f"{start}  {measured.median_step_ms:8.1f}  {speed:5.1f}  {measured.percent_of_limit:10.1f} %"
