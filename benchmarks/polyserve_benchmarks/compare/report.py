"""What a comparison found, as one JSON document and as lines for a terminal.

The best of the rounds' limits counts, since neighbours only slow a machine. `same_first_tokens` is the share of streams
whose first token is that of the first engine: engines that round differently differ now and then, a wrong one always.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyserve_benchmarks.compare.cost import step_bytes, token_flops
from polyserve_benchmarks.compare.figures import Limits, medians, percents, rates, ratios
from polyserve_benchmarks.compare.models import precision_name
from polyserve_benchmarks.compare.plan import Comparison
from polyserve_benchmarks.machine import machine, versions
from polyserve_benchmarks.workload import Workload

if TYPE_CHECKING:
    from polyserve_benchmarks.compare.run import Entrants, Task


def document_of(
    comparison: Comparison, workload: Workload, task: "Task", entrants: "Entrants", measured: list[tuple[float, float]]
) -> dict[str, Any]:
    """Everything, without a path of this machine.  measured: bytes and operations a second, by round."""
    limits = Limits(
        bytes_per_second=max(memory for memory, _ in measured),
        flops_per_second=max(matrix for _, matrix in measured),
        step_bytes=step_bytes(task.path, task.precision),
        token_flops=token_flops(task.path),
    )
    return {
        "benchmark": "compare",
        "model": task.path.name if Path(comparison.model).exists() else comparison.model,
        "precision": precision_name(task.precision, task.path),
        "threads": task.threads,
        "rounds": comparison.rounds,
        "workload": asdict(workload),
        "prompt_lens": comparison.prompt_lens,
        "limits": {
            **asdict(limits),
            "bytes_per_second_by_round": [memory for memory, _ in measured],
            "flops_per_second_by_round": [matrix for _, matrix in measured],
        },
        "first": next(iter(entrants.engines)),
        "engines": _results(task, entrants, limits),
        "left_out": entrants.left_out,
        "versions": versions(),
        "machine": machine(),
    }


def _results(task: "Task", entrants: "Entrants", limits: Limits) -> dict[str, Any]:
    by_round = {name: rates(task.runs, entrants.seconds[name]) for name in entrants.engines}
    first = next(iter(by_round))
    results = {}
    for name, engine in entrants.engines.items():
        figures = medians(by_round[name])
        pairs = list(zip(entrants.first_tokens[name], entrants.first_tokens[first], strict=True))
        results[name] = {
            "version": engine.version,
            "settings": engine.settings,
            "start_seconds": engine.start_seconds,
            "load_seconds": engine.load_seconds,
            "tokens_per_second": figures,
            "tokens_per_second_by_round": by_round[name],
            "percent_of_limit": percents(figures, limits),
            "first_is_faster_by": ratios(by_round[first], by_round[name]),
            "same_first_tokens": sum(a == b for a, b in pairs) / len(pairs),
        }
    return results


def figure_rows(document: dict[str, Any]) -> list[str]:
    """The table in columns of one width."""
    table = cells(document)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]


def cells(document: dict[str, Any]) -> list[list[str]]:
    """A heading, then a row an engine: tokens/s (percent of the limit), and how many times faster the first one is."""
    first = document["first"]
    names = list(document["engines"][first]["tokens_per_second"])
    table = [["engine", *(_heading(name) for name in names), "ready after"]]
    for engine, result in document["engines"].items():
        row = []
        for name in names:
            cell = f"{result['tokens_per_second'][name]:,.1f}"
            share = result["percent_of_limit"].get(name)
            if share is not None:
                cell += f" ({share:.0f} %)"
            if engine != first:
                cell += f" {result['first_is_faster_by'][name]:.2f}x"
            row.append(cell)
        table.append([f"{engine} {result['version']}", *row, f"{result['start_seconds']:.1f} s"])
    return table


def _heading(name: str) -> str:
    kind, _, number = name.partition("_")
    if kind == "prompt":
        return f"prompt of {number}"
    streams = f"{number} stream" + ("s" if number != "1" else "")
    return streams if kind == "decode" else f"{streams}, prompts included"
