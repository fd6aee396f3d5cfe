"""`polyserve keys`: make an API key."""

from pathlib import Path

import click


@click.command()
@click.argument("name")
@click.option("--admin", is_flag=True, help="a key that also opens /metrics and whatever else is an admin's")
@click.option("--file", type=click.Path(path_type=Path), help="add the line to this file; default: print it")
def keys(*, name: str, admin: bool, file: Path | None) -> None:
    """Make an API key for NAME and print it, this once: the server keeps its hash alone.

    The line with the hash goes into the file that `polyserve serve --api-keys-file` reads; SIGHUP reads it again.
    """
    from polyserve.api.keys import new_key

    key, entry = new_key(name, admin=admin)
    if file is None:
        click.echo(entry.line(), err=True)
    else:
        file.touch(mode=0o600)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(entry.line() + "\n")
    click.echo(key)
