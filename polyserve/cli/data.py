"""`polyserve data`: from documents to what the trainer reads."""

from pathlib import Path

import click

from polyserve.cli.options import Flags, SectionedCommand, flags_of
from polyserve.cli.tables import table
from polyserve_training.config import PrepareOptions, TokenizeOptions


@click.group()
def data() -> None:
    """Make data sets for training."""


@data.command(cls=SectionedCommand)
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="folder of what is kept; must be new")
@flags_of(PrepareOptions, "options")
def prepare(*, inputs: tuple[Path, ...], out: Path, options: Flags[PrepareOptions]) -> None:
    """Clean files or folders of text, JSON lines or Parquet: languages, rules of quality, near duplicates."""
    asked = options.build()

    from polyserve_training.data.prepare import prepare

    accounts = prepare(inputs, out, asked)
    reasons = sorted({reason for account in accounts.values() for reason in account.dropped})
    rows: list[tuple[str, ...]] = [("language", "read", "kept", "kept bytes", *reasons)]
    for language, x in accounts.items():
        counts = (x.read, x.kept, x.kept_bytes, *(x.dropped.get(reason, 0) for reason in reasons))
        rows.append((language, *(f"{count:,}" for count in counts)))
    click.echo(table(rows))


@data.command(cls=SectionedCommand)
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-t", "--tokenizer", required=True, type=click.Path(path_type=Path), help="folder of the tokenizer")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the data set's folder; must be new")
@flags_of(TokenizeOptions, "options")
def tokenize(*, inputs: tuple[Path, ...], tokenizer: Path, out: Path, options: Flags[TokenizeOptions]) -> None:
    """Encode files or folders of text, JSON lines or Parquet into shards that the trainer maps into memory."""
    asked = options.build()

    from polyserve_training.data.tokenize import tokenize

    index = tokenize(inputs, tokenizer, out, asked)
    rows: list[tuple[str, ...]] = [("language", "documents", "tokens", "bytes", "bytes/token")]
    for language, stream in index.streams.items():
        counts = (stream.num_documents, stream.num_tokens, stream.num_bytes)
        rows.append((language, *(f"{count:,}" for count in counts), f"{stream.num_bytes / stream.num_tokens:.2f}"))
    click.echo(table(rows))
    click.echo(f"fingerprint {index.fingerprint}")
