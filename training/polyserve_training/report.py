"""A run's log as pictures and one page: loss, loss by language, learning rate and gradient norm, mixture, speed.

RUN/report/*.png and RUN/report/index.html, which holds the same pictures inside itself and can be sent around.
"""

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from polyserve.errors import TrainingError
from polyserve_training.checkpoint import Checkpoints, read_meta
from polyserve_training.run_log import read_log

_SMOOTH = 0.95
Lines = Sequence[Mapping[str, Any]]


def write_report(run: Path) -> Path:
    """Draw a run's log, and return the page. Raises TrainingError if there is none."""
    lines = read_log(run)
    steps = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "validation" in line]
    if not steps:
        raise TrainingError(f"{run / 'log.jsonl'}: has no step to draw")
    out = run / "report"
    try:
        out.mkdir(exist_ok=True)
        pictures = {
            "loss": _draw(out / "loss.png", lambda axes: _loss(axes, steps)),
            "learning rate and gradient": _draw(out / "learning_rate.png", lambda axes: _rates(axes, steps)),
            "mixture": _draw(out / "mixture.png", lambda axes: _mixture(axes, steps)),
            "speed": _draw(out / "speed.png", lambda axes: _speed(axes, steps)),
        }
        if validations:
            pictures["validation by language"] = _draw(
                out / "validation.png", lambda axes: _validation(axes, validations)
            )
        page = out / "index.html"
        page.write_text(_page(run, steps, validations, pictures), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written: {error}") from error
    return page


def _draw(path: Path, fill: Callable[[Any], None]) -> Path:
    from matplotlib import color_sequences
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=color_sequences["tab20"])  # PolyLM's languages are 18
    fill(axes)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)
    return path


def _loss(axes: Any, steps: Lines) -> None:
    numbers, losses = [line["step"] for line in steps], [line["loss"] for line in steps]
    axes.plot(numbers, losses, alpha=0.3, label="loss")
    axes.plot(numbers, _smoothed(losses), label="smoothed")
    skipped = [line for line in steps if line["skipped"]]
    if skipped:
        axes.plot([line["step"] for line in skipped], [line["loss"] for line in skipped], "rx", label="skipped")
    axes.set_ylabel("nats per token")
    _mark_stages(axes, steps)


def _rates(axes: Any, steps: Lines) -> None:
    numbers = [line["step"] for line in steps]
    axes.plot(numbers, [line["learning_rate"] for line in steps], label="learning rate")
    axes.set_ylabel("learning rate")
    norms = axes.twinx()
    norms.plot(numbers, [line["gradient_norm"] for line in steps], color="tab:orange", alpha=0.5)
    norms.set_ylabel("gradient norm", color="tab:orange")
    _mark_stages(axes, steps)


def _mixture(axes: Any, steps: Lines) -> None:
    """Rows read so far, by language, as parts of all: from the counts that each step logs."""
    languages = sorted({language for line in steps for language in line["rows"]})
    totals, shares = dict.fromkeys(languages, 0), {language: [] for language in languages}  # type: ignore[var-annotated]
    for line in steps:
        for language, count in line["rows"].items():
            totals[language] += count
        whole = sum(totals.values())
        for language in languages:
            shares[language].append(totals[language] / whole)
    axes.stackplot([line["step"] for line in steps], *shares.values(), labels=languages)
    axes.set_ylabel("part of all rows so far")
    axes.set_ylim(0, 1)
    _mark_stages(axes, steps)


def _speed(axes: Any, steps: Lines) -> None:
    axes.plot([line["step"] for line in steps], [line["tokens_per_s"] for line in steps], label="tokens/s")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)


def _validation(axes: Any, validations: Lines) -> None:
    for name in validations[-1]["validation"]:
        found = [(line["step"], line["validation"].get(name)) for line in validations]
        points = [(step, losses["bits_per_byte"]) for step, losses in found if losses is not None]
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set_ylabel("bits per byte")


def _mark_stages(axes: Any, steps: Lines) -> None:
    for before, line in pairwise(steps):
        if before["stage"] != line["stage"]:
            axes.axvline(before["step"] + 0.5, color="black", linewidth=0.8)
            axes.annotate(
                line["stage"], (before["step"] + 0.5, 0.97), xycoords=("data", "axes fraction"), fontsize="small"
            )


def _smoothed(values: Sequence[float]) -> list[float]:
    smooth, weight, found = 0.0, 0.0, []
    for value in values:
        smooth, weight = _SMOOTH * smooth + (1 - _SMOOTH) * value, _SMOOTH * weight + 1 - _SMOOTH
        found.append(smooth / weight)
    return found


def _page(run: Path, steps: Lines, validations: Lines, pictures: Mapping[str, Path]) -> str:
    last = steps[-1]
    facts = {
        "steps": f"{last['step']}, of which {sum(line['skipped'] for line in steps)} skipped",
        "tokens learned from": f"{sum(line['tokens'] for line in steps):,}",
        "last loss": f"{last['loss']:.4f}",
        "median tokens/s": f"{sorted(line['tokens_per_s'] for line in steps)[len(steps) // 2]:,.0f}",
    }
    latest = Checkpoints(run, keep=1, asynchronous=False).latest()
    if latest is not None:
        facts["numerics"] = str(read_meta(latest).get("numerics"))
    rows = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(fact)}" for name, fact in facts.items())
    images = "".join(
        f"<h2>{html.escape(name)}</h2><img alt='{html.escape(name)}' src='data:image/png;base64,"
        f"{base64.b64encode(path.read_bytes()).decode()}'>"
        for name, path in pictures.items()
    )
    if validations:
        languages = "".join(
            f"<tr><th>{html.escape(name)}<td>{x['loss']:.4f}<td>{x['bits_per_byte']:.4f}<td>{x['tokens']:,}"
            for name, x in validations[-1]["validation"].items()
        )
        images += f"<h2>last validation</h2><table><tr><th><th>loss<th>bits per byte<th>tokens{languages}</table>"
    style = (
        "body{font:16px sans-serif;max-width:60em;margin:2em auto}th{text-align:left;padding-right:1em}img{width:100%}"
    )
    title = html.escape(str(run))
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{style}</style>"
        f"<h1>{title}</h1><table>{rows}</table>{images}</html>\n"
    )
