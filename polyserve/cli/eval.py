"""`polyserve eval`: how good a model is, in figures. The last line of output is one JSON document."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from polyserve.cli.options import Flags, SectionedCommand, flags_of
from polyserve.config import EngineConfig
from polyserve.errors import InvalidRequest
from polyserve.eval.perplexity import Prediction, Windows, predict
from polyserve.sampling_params import SamplingParams

if TYPE_CHECKING:
    from polyserve.llm import LLM
    from polyserve.output import LogprobEntry


@click.group()
def eval() -> None:
    """Measure how good a model is."""


@eval.command(cls=SectionedCommand)
@flags_of(Windows, "windows", section="Windows")
@click.option("--max-bytes", type=click.IntRange(1), help="read no more of each file, whole characters alone")
@flags_of(EngineConfig, "engine", argument="model", section="Engine")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def perplexity(
    files: tuple[Path, ...], engine: Flags[EngineConfig], max_bytes: int | None, windows: Flags[Windows]
) -> None:
    """How well MODEL predicts text FILES: perplexity, and bits per byte, of each and of all together."""
    config, cut = engine.build(), windows.build()
    texts = {str(path): _text(path, max_bytes) for path in files}

    from polyserve.llm import LLM

    llm = LLM(config=config)
    if cut.window > llm.engine.max_model_len:
        raise InvalidRequest(f"window must be at most {llm.engine.max_model_len} for this model, got {cut.window}")
    rows: dict[str, Prediction] = {}
    click.echo("perplexity  bits/byte  tokens   bytes  file")
    for name, text in texts.items():
        rows[name] = _predict(llm, text, cut)
        click.echo(_row(rows[name], name))
    total = sum(rows.values(), Prediction(0, 0, 0.0))
    click.echo(_row(total, "all"))
    document = {
        "eval": "perplexity",
        "config": asdict(config),
        "windows": asdict(cut),
        "max_bytes": max_bytes,
        "files": {name: _figures(row) for name, row in rows.items()},
        "total": _figures(total),
        "numerics_id": llm.engine.numerics_id,
    }
    click.echo(json.dumps(document, ensure_ascii=False))


def _text(path: Path, max_bytes: int | None) -> str:
    try:
        return path.read_bytes()[:max_bytes].decode(errors="strict" if max_bytes is None else "ignore")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is not UTF-8 (byte {error.start})") from error


def _predict(llm: "LLM", text: str, windows: Windows) -> Prediction:
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)

    def score(prompts: list[list[int]]) -> "list[list[LogprobEntry | None]]":
        return [output.prompt_logprobs or [] for output in llm.generate([*prompts], params, use_tqdm=False)]

    tokenizer = llm.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    prediction = predict(score, ids, windows, bos_id=tokenizer.bos_id if tokenizer.adds_bos else None)
    if not prediction.num_tokens:
        raise click.UsageError("a text has no token that something predicts")
    return prediction


def _figures(row: Prediction) -> dict[str, float]:
    return {**asdict(row), "perplexity": row.perplexity, "bits_per_byte": row.bits_per_byte}


def _row(row: Prediction, name: str) -> str:
    return f"{row.perplexity:10.4f}  {row.bits_per_byte:9.4f}  {row.num_tokens:6d}  {row.num_bytes:6d}  {name}"
