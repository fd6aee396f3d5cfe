"""`polyserve train`: a recipe becomes a run, and the same command goes on with a run that was stopped.

`polyserve train report` draws a run. `polyserve train RECIPE` is `polyserve train run RECIPE`: what is no command is a
recipe.
"""

from pathlib import Path

import click


class _RecipeFirst(click.Group):
    """A group whose default command takes a recipe."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["run", *args])


@click.group(cls=_RecipeFirst, context_settings={"ignore_unknown_options": True})
def train() -> None:
    """Train a model as a recipe says: polyserve train RECIPE.yaml [KEY=VALUE]..."""


@train.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--check", is_flag=True, help="check the recipe and its data, show the plan, and compute nothing")
def run(*, recipe: Path, overrides: tuple[str, ...], check: bool) -> None:
    """Train as RECIPE says, a YAML file; KEY=VALUE sets a key of it, as in optimizer.lr=1e-4.

    A run whose folder has a checkpoint goes on from the newest one, to the bit. The word run may be left out.
    """
    from polyserve.openmp import let_threads_sleep

    let_threads_sleep()

    from polyserve.cli.tables import table
    from polyserve.log import set_up_logging
    from polyserve_training.pretrain import prepare, train
    from polyserve_training.recipe import read_recipe

    set_up_logging("info")
    asked = read_recipe(recipe, overrides)
    if not check:
        sha256 = train(asked)
        if sha256 is not None:
            click.echo(f"done: weights and optimiser have SHA-256 {sha256}")
        return
    rows: list[tuple[str, ...]] = [("stage", "stream", "share", "epochs")]
    for planned in prepare(asked).curriculum.table():
        rows.append((planned.stage, planned.stream, f"{planned.share:.2%}", f"{planned.epochs:.2f}"))
    click.echo(table(rows))


@train.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
def report(*, folder: Path) -> None:
    """Draw the log of RUN, a run's folder, as pictures and one page."""
    from polyserve_training.report import write_report

    click.echo(write_report(folder))
