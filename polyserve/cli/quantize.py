"""`polyserve quantize IN OUT`: a checkpoint whose matrices are integers with scales, which loads packed."""

from pathlib import Path

import click


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--scheme", type=click.Choice(["int8", "int4"]), default="int4", show_default=True, help="of every matrix"
)
@click.option("--group", type=int, help="channels that share a scale; default: 32 for int4, a whole row for int8")
def quantize(source: str, target: Path, scheme: str, group: int | None) -> None:
    """Write the checkpoint IN, a folder or a Hugging Face id, as the folder OUT with quantised matrices."""
    from tqdm import tqdm

    from polyserve.model.weights.quantize import quantize_checkpoint
    from polyserve.model.weights.resolve import resolve
    from polyserve.quantization.schemes import DEFAULT_GROUP, Scheme

    try:
        chosen = Scheme("int4", group or DEFAULT_GROUP) if scheme == "int4" else Scheme("int8", group)
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error
    with tqdm(unit="tensor", disable=None) as progress:

        def report(name: str, done: int, total: int) -> None:
            progress.total = total
            progress.set_postfix_str(name, refresh=False)
            progress.update(done - progress.n)

        quantize_checkpoint(resolve(source), target, chosen, report=report)
    size = sum(path.stat().st_size for path in target.iterdir())
    click.echo(f"{target}: {chosen}, {size / 1e9:.2f} GB")
