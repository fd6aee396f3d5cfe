"""What `/metrics` shows, in Prometheus' text format: requests of both protocols, each token counted once.

Counted here as deltas pass      prompt and generated tokens, ends of choices, times to the first token, between tokens
                                 and to the end
Read from the engine's counts    running and waiting sequences, KV cache in use, prefix cache, preemptions
A scrape asks the engine nothing, so that a busy or dead engine cannot block it. The registry is this server's own.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from polyserve.service.async_llm import AsyncLLM, ChoiceDelta

# seconds
FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
BETWEEN_TOKENS_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
WHOLE_REQUEST_BUCKETS = tuple(0.01 * 2**k for k in range(16))


class Metrics:
    """The numbers of one server."""

    def __init__(self, llm: AsyncLLM) -> None:
        registry = self._registry = CollectorRegistry()
        registry.register(_EngineCounts(llm))
        self.prompt_tokens = Counter(
            "polyserve_prompt_tokens", "tokens of prompts, once for each prompt", registry=registry
        )
        self.generation_tokens = Counter("polyserve_generation_tokens", "tokens that were generated", registry=registry)
        self.ended = Counter(
            "polyserve_request_success",
            "choices that ended, by how: stop, length, abort (the client left) or error",
            ["finished_reason"],
            registry=registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self.ended.labels(reason)  # shown as 0 from the start, so that a rate over it is defined
        self.first_token = Histogram(
            "polyserve_time_to_first_token_seconds",
            "from a request's arrival to the first token of any of its choices",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "polyserve_inter_token_latency_seconds",
            "between two tokens of one choice",
            buckets=BETWEEN_TOKENS_BUCKETS,
            registry=registry,
        )
        self.whole_request = Histogram(
            "polyserve_e2e_request_latency_seconds",
            "from a request's arrival to the end of its last choice",
            buckets=WHOLE_REQUEST_BUCKETS,
            registry=registry,
        )

    def exposition(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)

    @contextmanager
    def request(self, arrived: float, num_prompt_tokens: int, num_choices: int) -> Iterator["Record"]:
        """Follow one prompt while it is served. Choices that are open when it is left were aborted, or met an error."""
        self.prompt_tokens.inc(num_prompt_tokens)
        record = Record(self, arrived, num_choices)
        reason = "error"
        try:
            yield record
        except (GeneratorExit, asyncio.CancelledError):
            reason = "abort"
            raise
        finally:
            if record.num_open:
                self.ended.labels(reason).inc(record.num_open)


class Record:
    """One prompt's tokens as they come."""

    def __init__(self, metrics: Metrics, arrived: float, num_choices: int) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._last: dict[int, float] = {}  # when each choice's newest token came
        self.num_open = num_choices

    def delta(self, delta: ChoiceDelta) -> None:
        """Count what one delta brings."""
        metrics, now = self._metrics, time.monotonic()
        num_tokens = len(delta.token_ids)
        if num_tokens:
            metrics.generation_tokens.inc(num_tokens)
            self._time_tokens(delta.choice, num_tokens, now)
        if delta.finish_reason is not None:
            metrics.ended.labels(delta.finish_reason).inc()
            self.num_open -= 1
            if not self.num_open:
                metrics.whole_request.observe(now - self._arrived)

    def _time_tokens(self, choice: int, num_tokens: int, now: float) -> None:
        """Tokens that come together share the time since the one before; a choice's first token has none before it."""
        if not self._last:
            self._metrics.first_token.observe(now - self._arrived)
        before = self._last.get(choice)
        self._last[choice] = now
        num_gaps = num_tokens if before is not None else num_tokens - 1
        gap = 0.0 if before is None else (now - before) / num_tokens
        for _ in range(num_gaps):
            self._metrics.between_tokens.observe(gap)


class _EngineCounts(Collector):
    """The engine's counts after its last step."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    def collect(self) -> Iterable[Metric]:
        stats = self._llm.stats
        in_use = stats.num_blocks - stats.num_free_blocks
        gauges = (
            ("polyserve_num_requests_running", "sequences that compute", stats.num_running),
            ("polyserve_num_requests_waiting", "sequences that wait for room", stats.num_waiting),
            ("polyserve_kv_cache_usage_ratio", "KV blocks in use, from 0 to 1", in_use / max(1, stats.num_blocks)),
        )
        counters = (
            (
                "polyserve_prefix_cache_queries",
                "prompt tokens looked up in the prefix cache",
                stats.prefix_query_tokens,
            ),
            ("polyserve_prefix_cache_hits", "prompt tokens found in the prefix cache", stats.prefix_hit_tokens),
            ("polyserve_num_preemptions", "sequences that lost their blocks to others", stats.num_preemptions),
        )
        for name, documentation, value in gauges:
            yield GaugeMetricFamily(name, documentation, value=value)
        for name, documentation, count in counters:
            yield CounterMetricFamily(name, documentation, value=count)
