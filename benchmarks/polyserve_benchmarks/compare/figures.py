"""Medians, ratios and percents from the seconds of the runs. Pure arithmetic.

prompt tokens/s   prompt length / time of one prompt with one token
decode tokens/s   streams x (tokens - 1) / (time of the whole run - time of prompts of the same lengths with one token)
output tokens/s   streams x tokens / time of the whole run, prompts included
ratio             median over rounds of (first engine / other engine) in the same round: neighbours slow both alike
"""

import statistics
from dataclasses import dataclass

from polyserve_benchmarks.compare.plan import Run

Seconds = dict[Run, list[float]]  # by round
Rates = dict[str, list[float]]  # a figure's name to tokens a second, by round


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine can do, and what a model asks of it."""

    bytes_per_second: float
    flops_per_second: float
    step_bytes: int  # weights that a step of decoding must read
    token_flops: int  # operations of one prompt token, the head left out

    def percent_of_memory(self, steps_per_second: float) -> float:
        return 100.0 * self.step_bytes * steps_per_second / self.bytes_per_second

    def percent_of_matrix(self, prompt_tokens_per_second: float) -> float:
        return 100.0 * self.token_flops * prompt_tokens_per_second / self.flops_per_second


def rates(runs: list[Run], seconds: Seconds) -> Rates:
    """Every figure of one engine: prompt_LENGTH, decode_STREAMS, output_STREAMS."""
    by_name: Rates = {}
    for run in runs:
        if run.num_tokens > 1:
            by_name[f"decode_{run.num_streams}"] = _decode_rates(run, seconds)
            by_name[f"output_{run.num_streams}"] = [run.num_streams * run.num_tokens / time for time in seconds[run]]
        elif run.num_streams == 1:
            by_name[f"prompt_{run.input_len}"] = [run.input_len / time for time in seconds[run]]
    return by_name


def _decode_rates(run: Run, seconds: Seconds) -> list[float]:
    """Tokens a second after the first, of all streams together."""
    pairs = zip(seconds[run], seconds[run.prompts_alone], strict=True)
    return [run.num_streams * (run.num_tokens - 1) / max(whole - prompts, 1e-9) for whole, prompts in pairs]


def medians(by_name: Rates) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in by_name.items()}


def ratios(first: Rates, other: Rates) -> dict[str, float]:
    return {
        name: statistics.median(a / b for a, b in zip(values, other[name], strict=True))
        for name, values in first.items()
    }


def percents(figures: dict[str, float], limits: Limits) -> dict[str, float]:
    """How near the limit: of memory for decoding (each step reads the weights once), of the matrix rate for prompts."""
    shares = {}
    for name, figure in figures.items():
        kind, _, number = name.partition("_")
        if kind == "decode":
            shares[name] = limits.percent_of_memory(figure / int(number))
        elif kind == "prompt":
            shares[name] = limits.percent_of_matrix(figure)
    return shares
