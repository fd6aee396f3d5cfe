"""What is asked of a server, and when: flags as vLLM's `bench serve` spells them.

Prompts are common English words at random, about a token each in any vocabulary, so that any server takes them; the
counts of tokens are the server's own. Arrivals are independent (Poisson) at `request_rate` a second, more or less in
bursts with `burstiness` below or above 1 (a gamma distribution), or all at once; `max_concurrency` holds them back.
"""

import random
from dataclasses import dataclass
from math import inf

from polyserve.config import option

BACKENDS = ("openai", "openai-chat", "grpc")
METRICS = ("ttft", "tpot", "itl", "e2el")
WORDS = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world",
    "school", "state", "family", "student", "group", "country", "problem", "hand", "part", "place", "case",
    "week", "company", "system", "program", "question", "work", "night", "point", "home", "water", "room",
    "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye",
    "job", "word", "business", "issue", "side", "kind", "head", "house", "service", "friend", "father",
    "power", "hour",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """See the module."""

    base_url: str = option("http://127.0.0.1:8000", "of the server; for grpc its address, as 127.0.0.1:50051")
    backend: str = option("openai", "completions, chat completions, or PolyServe's gRPC service", choices=BACKENDS)
    model: str | None = option(None, "the served name; default: the first that the server lists")
    num_prompts: int = option(100, "requests at each rate")
    request_rate: list[str] = option(["inf"], "requests a second, or inf: all at once; several are measured in turn")
    burstiness: float = option(1.0, "of arrivals: 1 is a Poisson process, less comes in bursts, more is regular")
    max_concurrency: list[int] = option([], "most requests at a time; several are measured in turn; default: no limit")
    random_input_len: int = option(128, "words of each prompt")
    random_output_len: int = option(64, "tokens of each answer")
    random_range_ratio: float = option(0.0, "lengths vary by this share, up and down")
    seed: int = option(0, "of prompts and arrivals")
    ignore_eos: bool = option(True, "go on after the model's end of sequence, so that answers are as long as asked")
    extra_body: str | None = option(None, "further fields of every request, as JSON")
    goodput: list[str] = option([], "limits in ms that a good request keeps: ttft:200, tpot:50 or e2el:2000")
    metric_percentiles: list[str] = option(["90", "95", "99"], "percentiles that are told")
    front_pid: int | None = option(None, "the server's process: tell its processor time for each streamed token")
    out: str | None = option(None, "a JSON file for everything, with each request's times")
    plot: str | None = option(None, "a PNG for latency against load; needs matplotlib")

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        for name in ("num_prompts", "random_input_len", "random_output_len", "burstiness"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if not 0 <= self.random_range_ratio < 1:
            raise ValueError(f"random_range_ratio must be at least 0 and less than 1, got {self.random_range_ratio}")
        for rate in self.rates:
            if not rate > 0:
                raise ValueError(f"request_rate must be more than 0, got {rate}")
        if len(self.rates) > 1 and len(self.max_concurrency) > 1:
            raise ValueError("request_rate and max_concurrency cannot both be several: one of them is the load")
        _ = self.limits_ms, self.percentiles

    @property
    def rates(self) -> list[float]:
        return [_number("request_rate", rate) for rate in self.request_rate]

    @property
    def percentiles(self) -> list[float]:
        return [_number("metric_percentiles", percentile) for percentile in self.metric_percentiles]

    @property
    def limits_ms(self) -> dict[str, float]:
        """The limits of a good request, by metric."""
        limits = {}
        for limit in self.goodput:
            metric, _, value = limit.partition(":")
            if metric not in ("ttft", "tpot", "e2el"):
                raise ValueError(f"goodput takes ttft:MS, tpot:MS and e2el:MS, got {limit!r}")
            limits[metric] = _number("goodput", value)
        return limits

    @property
    def points(self) -> list[tuple[float, int | None]]:
        """The loads to measure: rate and most requests at a time."""
        if len(self.max_concurrency) > 1:
            return [(self.rates[0], most) for most in self.max_concurrency]
        most = self.max_concurrency[0] if self.max_concurrency else None
        return [(rate, most) for rate in self.rates]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    prompt: str
    output_len: int


def requests_of(load: Load, *, salt: int) -> list[Asked]:
    """The requests of one point; other points have other prompts."""
    rng = random.Random(f"{load.seed} {salt}")

    def length(middle: int) -> int:
        spread = load.random_range_ratio
        return max(1, rng.randint(round(middle * (1 - spread)), round(middle * (1 + spread))))

    return [
        Asked(" ".join(rng.choices(WORDS, k=length(load.random_input_len))), length(load.random_output_len))
        for _ in range(load.num_prompts)
    ]


def arrivals(load: Load, rate: float) -> list[float]:
    """Seconds after the beginning at which each request is sent."""
    if rate == inf:
        return [0.0] * load.num_prompts
    rng = random.Random(load.seed)
    now, times = 0.0, []
    for _ in range(load.num_prompts):
        times.append(now)
        now += rng.gammavariate(load.burstiness, 1 / (rate * load.burstiness))
    return times


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {text!r}") from None
