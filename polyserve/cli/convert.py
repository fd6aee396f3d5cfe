"""`polyserve convert`: a run, or a checkpoint in any format, as a folder that `transformers` and the server read."""

from pathlib import Path

import click

from polyserve.config import DTYPES


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--step", type=int, help="of a run: the checkpoint after this step; default: the last one")
@click.option("--dtype", type=click.Choice(DTYPES), help="of matrices; default: what a run computes in, else bfloat16")
def convert(*, source: str, out: Path, step: int | None, dtype: str | None) -> None:
    """Write SOURCE, a run's folder or a model's, as a new folder OUT in Hugging Face's format."""
    from polyserve_training.export import convert

    click.echo(f"{convert(source, out, step=step, dtype=dtype)}: polyserve serve {out}")
