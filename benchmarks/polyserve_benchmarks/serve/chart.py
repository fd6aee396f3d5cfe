"""Latency against load as a picture: for each metric its median and its highest percentile over the points' load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyserve.errors import PolyServeError
from polyserve_benchmarks.serve.figures import TITLES
from polyserve_benchmarks.serve.load import METRICS, Load


def draw(load: Load, results: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG. Raises PolyServeError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PolyServeError("--plot needs matplotlib: install polyserve-lm[train]") from error
    figure = Figure(figsize=(10, 7), layout="constrained")
    rows = figure.subplots(2, 2, sharex=True)
    throughput = [result["output_throughput"] for result in results]
    for axes, metric in zip(rows.flat, METRICS, strict=True):
        for name in ("median", f"p{max(load.percentiles):g}"):
            axes.plot(throughput, [result[f"{name}_{metric}_ms"] for result in results], marker="o", label=name)
        axes.set(title=TITLES[metric], ylabel="ms", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    for axes in rows[1]:
        axes.set_xlabel("output tokens / s")
    figure.savefig(path, dpi=120)
