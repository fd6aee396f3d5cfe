"""`polyserve score`: how likely a model finds given texts, one JSON line for each.

A .jsonl file has one object a line: {"context": ..., "continuation": ...}, or {"text": ...}. Of any other file each
line that is not empty is a text.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from polyserve.cli.options import Flags, SectionedCommand, flags_of
from polyserve.config import EngineConfig

if TYPE_CHECKING:
    from polyserve.scoring import Score


@click.command(cls=SectionedCommand)
@click.option("-m", "--model", "model", help="as for other commands; default: smollm2")
@flags_of(EngineConfig, "engine", skip=("model",), section="Engine")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def score(file: Path, model: str | None, engine: Flags[EngineConfig]) -> None:
    """Score texts, or continuations of contexts, of FILE."""
    rows = _rows(file)
    config = engine.build()

    from polyserve.llm import LLM

    llm = LLM(model, config=config)
    for (context, continuation), found in zip(rows, llm.score(rows), strict=True):
        click.echo(json.dumps({"context": context, "continuation": continuation} | _figures(found), ensure_ascii=False))


def _rows(file: Path) -> list[tuple[str, str]]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{file} is not UTF-8 (byte {error.start})") from error
    if file.suffix != ".jsonl":
        return [("", line) for line in lines]
    return [_row(number, line) for number, line in enumerate(lines, start=1)]


def _row(number: int, line: str) -> tuple[str, str]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise click.UsageError(f"line {number} is not JSON: {error}") from error
    match value:
        case {"context": str(context), "continuation": str(continuation), **rest} if not rest:
            return context, continuation
        case {"text": str(text), **rest} if not rest:
            return "", text
    raise click.UsageError(f"line {number} must have a context and a continuation, or a text, and nothing else")


def _figures(found: "Score") -> dict[str, object]:
    return {
        "logprob": found.logprob,
        "is_greedy": found.is_greedy,
        "num_tokens": len(found.token_ids),
        "num_bytes": found.num_bytes,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
    }
