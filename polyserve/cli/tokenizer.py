"""`polyserve tokenizer`: train one, and see how each language comes out."""

from pathlib import Path

import click

from polyserve.cli.options import Flags, SectionedCommand, flags_of
from polyserve.cli.tables import table
from polyserve_training.config import TokenizerOptions

HEADINGS = ("language", "documents", "tokens", "tokens/word", "tokens/char", "bytes/token", "single bytes")


@click.group()
def tokenizer() -> None:
    """Make tokenizers."""


@tokenizer.command(cls=SectionedCommand)
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the tokenizer's folder; must be new")
@flags_of(TokenizerOptions, "options")
def train(*, inputs: tuple[Path, ...], out: Path, options: Flags[TokenizerOptions]) -> None:
    """Train a SentencePiece BPE tokenizer on files or folders of text, JSON lines or Parquet."""
    asked = options.build()

    from polyserve_training.tokenizer import train_tokenizer

    report = train_tokenizer(inputs, out, asked)
    rows: list[tuple[str, ...]] = [HEADINGS]
    for language, x in report.items():
        rates = (f"{x.tokens_per_word:.2f}", f"{x.tokens_per_character:.2f}", f"{x.bytes_per_token:.2f}")
        rows.append((language, f"{x.documents:,}", f"{x.tokens:,}", *rates, f"{x.byte_share:.1%}"))
    click.echo(table(rows))
