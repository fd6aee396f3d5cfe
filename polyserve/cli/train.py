"""`polyserve train`: a recipe becomes a run; the same command goes on with a run that was stopped."""

from pathlib import Path

import click


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--check", is_flag=True, help="check the recipe and its data, show the plan, and compute nothing")
def train(*, recipe: Path, overrides: tuple[str, ...], check: bool) -> None:
    """Train a model as RECIPE says, a YAML file; KEY=VALUE sets a key of it, as in optimizer.lr=1e-4.

    A run whose folder has a checkpoint goes on from the newest one, to the bit.
    """
    from polyserve.cli.tokenizer import table
    from polyserve.log import set_up_logging
    from polyserve_training.pretrain import prepare
    from polyserve_training.pretrain import train as run
    from polyserve_training.recipe import read_recipe

    set_up_logging("info")
    asked = read_recipe(recipe, overrides)
    if not check:
        click.echo(f"done: weights and optimiser have SHA-256 {run(asked)}")
        return
    rows: list[tuple[str, ...]] = [("stage", "stream", "share", "epochs")]
    for planned in prepare(asked).curriculum.table():
        rows.append((planned.stage, planned.stream, f"{planned.share:.2%}", f"{planned.epochs:.2f}"))
    click.echo(table(rows))
