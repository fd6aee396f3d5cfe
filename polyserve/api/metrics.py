"""What `/metrics` shows, in Prometheus' text format: requests of both protocols, each token counted once.

Counted here as deltas pass      tokens and characters, by script; ends of choices; times to the first token, between
                                 tokens and to the end
Counted where requests end       refusals by reason, aborts by cause
Read from the engine's counts    running and waiting sequences, KV cache in use, prefix cache, preemptions, steps
A scrape asks the engine nothing, so that a busy or dead engine cannot block it. The registry is this server's own.
"""

import asyncio
import time
from collections import Counter as Counts
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from polyserve.api.metric_names import VllmNames
from polyserve.api.scripts import script_of_piece, script_of_text
from polyserve.errors import DeadlineExceeded, EngineDead, InvalidRequest, NotReady, Overloaded, PolyServeError
from polyserve.service.admission import Ticket
from polyserve.service.async_llm import AsyncLLM, ChoiceDelta

# seconds
FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
BETWEEN_TOKENS_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
WHOLE_REQUEST_BUCKETS = tuple(0.01 * 2**k for k in range(16))
LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
TOKEN_BUCKETS = tuple(2**k for k in range(18))

LAG_INTERVAL_S = 0.25
ENDS = ("stop", "length", "abort", "error")
REASONS = {
    Overloaded: "overload",
    NotReady: "draining",
    DeadlineExceeded: "deadline",
    EngineDead: "engine",
    InvalidRequest: "invalid",
}
CAUSES = ("client", "deadline", "engine", "error")


class Metrics:
    """The numbers of one server."""

    def __init__(self, llm: AsyncLLM, *, model_name: str, vllm_names: bool = False) -> None:
        registry = self._registry = CollectorRegistry()
        self._vllm_names = VllmNames(registry, model_name=model_name) if vllm_names else None
        registry.register(_EngineCounts(llm))
        self._written = _Written()
        registry.register(self._written)

        def counter(name: str, documentation: str, label: str | None = None, values: Iterable[str] = ()) -> Counter:
            made = Counter(f"polyserve_{name}", documentation, [label] if label else [], registry=registry)
            for value in values:
                made.labels(value)  # shown as 0 from the start, so that a rate over it is defined
            return made

        def histogram(name: str, documentation: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"polyserve_{name}", documentation, buckets=buckets, registry=registry)

        self.prompt_tokens = counter("prompt_tokens", "tokens of prompts, once for each prompt")
        self.ended = counter(
            "request_success", f"choices that ended, by how: {', '.join(ENDS)}", "finished_reason", ENDS
        )
        self.refused = counter(
            "requests_refused", "requests that were not taken in, by reason", "reason", REASONS.values()
        )
        self.aborted = counter(
            "requests_aborted", "prompts whose answers were given up, by cause: client is gone", "cause", CAUSES
        )
        self.first_token = histogram(
            "time_to_first_token_seconds",
            "from a request's arrival to the first token of any of its choices",
            FIRST_TOKEN_BUCKETS,
        )
        self.between_tokens = histogram(
            "inter_token_latency_seconds", "between two tokens of one choice", BETWEEN_TOKENS_BUCKETS
        )
        self.whole_request = histogram(
            "e2e_request_latency_seconds",
            "from a request's arrival to the end of its last choice",
            WHOLE_REQUEST_BUCKETS,
        )
        self.queueing = histogram(
            "request_queue_time_seconds", "from a request's arrival until the engine was sent it", WHOLE_REQUEST_BUCKETS
        )
        self.prefilling = histogram(
            "request_prefill_time_seconds", "from then to its first token", WHOLE_REQUEST_BUCKETS
        )
        self.decoding = histogram(
            "request_decode_time_seconds", "from a request's first token to its last", WHOLE_REQUEST_BUCKETS
        )
        self.prompt_lengths = histogram("request_prompt_tokens", "tokens of a prompt", TOKEN_BUCKETS)
        self.answer_lengths = histogram("request_generation_tokens", "tokens of the choices of a prompt", TOKEN_BUCKETS)
        self.loop_lag = histogram(
            "event_loop_lag_seconds", "how late the front's event loop wakes whom it promised a time", LAG_BUCKETS
        )

    def exposition(self) -> bytes:
        """All metrics as text."""
        text = generate_latest(self._registry)
        return text if self._vllm_names is None else text + generate_latest(self._vllm_names)

    async def watch_loop(self) -> None:
        """Measure the lag of the event loop for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self.loop_lag.observe(max(0.0, loop.time() - due))

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Count the request as refused if it is, inside."""
        try:
            yield
        except PolyServeError as error:
            self.refused.labels(REASONS.get(type(error), "invalid")).inc()
            raise

    @contextmanager
    def request(self, arrived: float, prompt: str | None, ticket: Ticket, num_choices: int) -> Iterator["Record"]:
        """Follow one prompt while it is served. Choices that are open when it is left were aborted, or met an error."""
        self.prompt_tokens.inc(ticket.prompt_len)
        self.prompt_lengths.observe(ticket.prompt_len)
        if prompt is not None:
            self._written.add("prompt", script_of_text(prompt), ticket.prompt_len, len(prompt))
        record = Record(self, arrived, ticket, num_choices)
        cause = "error"
        try:
            yield record
        except (GeneratorExit, asyncio.CancelledError):
            cause = "client"
            raise
        except DeadlineExceeded:
            cause = "deadline"
            raise
        except EngineDead:
            cause = "engine"
            raise
        finally:
            if record.num_open:
                self.ended.labels("abort" if cause == "client" else "error").inc(record.num_open)
                self.aborted.labels(cause).inc()

    def wrote(self, delta: ChoiceDelta) -> None:
        """Count what a delta adds to an answer."""
        self._written.add("generation", script_of_piece(delta.text), len(delta.token_ids), len(delta.text))


class Record:
    """One prompt's tokens as they come."""

    def __init__(self, metrics: Metrics, arrived: float, ticket: Ticket, num_choices: int) -> None:
        self._metrics = metrics
        self._ticket = ticket
        self.arrived = arrived
        self.first_at: float | None = None
        self._last: dict[int, float] = {}  # when each choice's newest token came
        self.num_tokens = 0
        self.num_open = num_choices

    @property
    def num_prompt_tokens(self) -> int:
        return self._ticket.prompt_len

    @property
    def sent_at(self) -> float | None:
        """When the engine was sent it."""
        return self._ticket.sent_at

    def delta(self, delta: ChoiceDelta) -> None:
        """Count what one delta brings."""
        metrics, now = self._metrics, time.monotonic()
        num_tokens = len(delta.token_ids)
        if num_tokens:
            self.num_tokens += num_tokens
            metrics.wrote(delta)
            self._time_tokens(delta.choice, num_tokens, now)
        if delta.finish_reason is not None:
            metrics.ended.labels(delta.finish_reason).inc()
            self.num_open -= 1
            if not self.num_open:
                metrics.whole_request.observe(now - self.arrived)
                metrics.answer_lengths.observe(self.num_tokens)
                if self.first_at is not None:
                    metrics.decoding.observe(now - self.first_at)

    def vector(self) -> None:
        """The prompt's vector has come, and nothing follows."""
        self.num_open = 0
        self._metrics.ended.labels("stop").inc()
        self._metrics.whole_request.observe(time.monotonic() - self.arrived)

    def _time_tokens(self, choice: int, num_tokens: int, now: float) -> None:
        """Tokens that come together share the time since the one before; a choice's first token has none before it."""
        if not self._last:
            self.first_at = now
            self._metrics.first_token.observe(now - self.arrived)
            sent = self.sent_at or now
            self._metrics.queueing.observe(sent - self.arrived)
            self._metrics.prefilling.observe(now - sent)
        before = self._last.get(choice)
        self._last[choice] = now
        num_gaps = num_tokens if before is not None else num_tokens - 1
        gap = 0.0 if before is None else (now - before) / num_tokens
        for _ in range(num_gaps):
            self._metrics.between_tokens.observe(gap)


class _Written(Collector):
    """Tokens and characters by script. Plain counts: the library's counters take a lock for each token."""

    def __init__(self) -> None:
        self._tokens: Counts[tuple[str, str]] = Counts()
        self._characters: Counts[tuple[str, str]] = Counts()

    def add(self, kind: str, script: str, num_tokens: int, num_characters: int) -> None:
        self._tokens[kind, script] += num_tokens
        self._characters[kind, script] += num_characters

    def collect(self) -> Iterable[Metric]:
        generated = sum(count for (kind, _), count in self._tokens.items() if kind == "generation")
        yield CounterMetricFamily("polyserve_generation_tokens", "tokens that were generated", value=generated)
        for unit, counts in (("tokens", self._tokens), ("characters", self._characters)):
            documentation = f"{unit} of prompts given as text and of answers, by the script they are written in"
            family = CounterMetricFamily(f"polyserve_{unit}", documentation, labels=("kind", "script"))
            for labels, count in counts.items():
                family.add_metric(labels, count)
            yield family


class _EngineCounts(Collector):
    """The engine's counts after its last step."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    def collect(self) -> Iterable[Metric]:
        stats = self._llm.stats
        unsent = self._llm.admission.num_unsent
        in_use = stats.num_blocks - stats.num_free_blocks
        gauges = (
            ("num_requests_running", "sequences that compute", stats.num_running),
            ("num_requests_waiting", "sequences that wait for their turn or for room", stats.num_waiting + unsent),
            ("kv_cache_usage_ratio", "KV blocks in use, from 0 to 1", in_use / max(1, stats.num_blocks)),
            ("kv_blocks", "KV blocks", stats.num_blocks),
        )
        counters = (
            ("prefix_cache_queries", "prompt tokens looked up in the prefix cache", stats.prefix_query_tokens),
            ("prefix_cache_hits", "prompt tokens found in the prefix cache", stats.prefix_hit_tokens),
            ("num_preemptions", "sequences that lost their blocks to others", stats.num_preemptions),
            ("engine_steps", "steps of the engine", stats.num_steps),
            ("engine_step_tokens", "tokens that they computed", stats.step_tokens),
            ("engine_step_seconds", "time that they took", stats.step_seconds),
            (
                "engine_step_predicted_seconds",
                "time that their bytes and operations would have taken at the best rates this engine has shown",
                stats.step_predicted_seconds,
            ),
            ("engine_restarts", "engine processes that ended and were started again", self._llm.num_restarts),
        )
        for name, documentation, value in gauges:
            yield GaugeMetricFamily(f"polyserve_{name}", documentation, value=value)
        for name, documentation, count in counters:
            yield CounterMetricFamily(f"polyserve_{name}", documentation, value=count)
