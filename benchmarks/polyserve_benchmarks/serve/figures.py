"""Figures of one load, under the names that vLLM's `bench serve` has for them, and its table.

ttft   from sending to the first token          tpot   mean time of the others        itl   each time between two parts
e2el   from sending to the last token           goodput   requests a second that keep every limit
Milliseconds; tokens as the server counts them. Failed requests are in no figure but their number.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyserve_benchmarks.serve.clients import Timed
from polyserve_benchmarks.serve.load import METRICS, Load

TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
WIDTH = 50


@dataclass(frozen=True, slots=True)
class Point:
    """One load that was measured."""

    rate: float
    max_concurrency: int | None
    duration: float  # seconds
    timed: list[Timed]
    front_seconds: float | None = None  # processor time of the server's process


def figures(load: Load, point: Point) -> dict[str, Any]:
    """Everything but what each request has of its own."""
    good = [timed for timed in point.timed if not timed.error]
    num_in, num_out = sum(t.prompt_tokens for t in good), sum(t.output_tokens for t in good)
    result: dict[str, Any] = {
        "request_rate": str(point.rate) if point.rate == float("inf") else point.rate,
        "burstiness": load.burstiness,
        "max_concurrency": point.max_concurrency,
        "duration": point.duration,
        "completed": len(good),
        "failed": len(point.timed) - len(good),
        "total_input_tokens": num_in,
        "total_output_tokens": num_out,
        "request_throughput": len(good) / point.duration,
        "request_goodput": _goodput(load, point.duration, good) if load.goodput else None,
        "output_throughput": num_out / point.duration,
        "total_token_throughput": (num_in + num_out) / point.duration,
    }
    if point.front_seconds is not None:
        result["front_us_per_token"] = 1e6 * point.front_seconds / max(num_out, 1)
    for metric, values in samples_ms(good).items():
        result[f"mean_{metric}_ms"] = statistics.fmean(values) if values else 0.0
        result[f"median_{metric}_ms"] = statistics.median(values) if values else 0.0
        result[f"std_{metric}_ms"] = statistics.pstdev(values) if values else 0.0
        for percentile in load.percentiles:
            result[f"p{percentile:g}_{metric}_ms"] = quantile(values, percentile / 100)
    return result


def details(timed: Sequence[Timed]) -> dict[str, Any]:
    """What each request has of its own, in seconds."""
    return {
        "input_lens": [t.prompt_tokens for t in timed],
        "output_lens": [t.output_tokens for t in timed],
        "ttfts": [t.ttft for t in timed],
        "itls": [t.itl for t in timed],
        "generated_texts": [t.text for t in timed],
        "errors": [t.error for t in timed],
    }


def samples_ms(good: Sequence[Timed]) -> dict[str, list[float]]:
    """What each metric is a distribution of."""
    return {
        "ttft": [1e3 * t.ttft for t in good],
        "tpot": [1e3 * t.tpot for t in good if t.output_tokens > 1],
        "itl": [1e3 * gap for t in good for gap in t.itl],
        "e2el": [1e3 * t.latency for t in good],
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of `values` lies, between neighbours in proportion; 0 of none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def table(load: Load, result: dict[str, Any]) -> str:
    """The figures as vLLM prints them."""
    rows = [
        ("Successful requests:", result["completed"]),
        ("Failed requests:", result["failed"]),
        ("Maximum request concurrency:", result["max_concurrency"]),
        ("Request rate configured (RPS):", None if result["request_rate"] == "inf" else float(result["request_rate"])),
        ("Benchmark duration (s):", result["duration"]),
        ("Total input tokens:", result["total_input_tokens"]),
        ("Total generated tokens:", result["total_output_tokens"]),
        ("Request throughput (req/s):", result["request_throughput"]),
        ("Request goodput (req/s):", result["request_goodput"]),
        ("Output token throughput (tok/s):", result["output_throughput"]),
        ("Total Token throughput (tok/s):", result["total_token_throughput"]),
        ("Front's processor time (us/tok):", result.get("front_us_per_token")),
    ]
    lines = [" Serving Benchmark Result ".center(WIDTH, "=")]
    lines += [_row(label, value) for label, value in rows if value is not None]
    for metric in METRICS:
        lines.append(TITLES[metric].center(WIDTH, "-"))
        name = metric.upper()
        lines += [_row(f"{kind} {name} (ms):", result[f"{kind.lower()}_{metric}_ms"]) for kind in ("Mean", "Median")]
        lines += [_row(f"P{p:g} {name} (ms):", result[f"p{p:g}_{metric}_ms"]) for p in load.percentiles]
    return "\n".join([*lines, "=" * WIDTH])


def _row(label: str, value: float) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<40} {shown:<10}".rstrip()


def _goodput(load: Load, duration: float, good: Sequence[Timed]) -> float:
    limits = load.limits_ms
    kept = [
        timed
        for timed in good
        if all(
            1e3 * {"ttft": timed.ttft, "tpot": timed.tpot, "e2el": timed.latency}[metric] <= limit
            for metric, limit in limits.items()
        )
    ]
    return len(kept) / duration
