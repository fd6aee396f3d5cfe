"""`polyserve`: one lazy group of commands, and the one place where an error becomes a line and an exit code.

Exit codes   0 done   1 a failure while running   2 wrong usage, or a model, recipe, data set or key file that cannot be
             used   130 interrupted
Each command lives in a file of its own, imported when it is needed; what is heavy (torch, the servers) is imported
inside its function, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from polyserve import __version__
from polyserve.errors import InvalidRequest, ModelLoadError, PolyServeError, SettingsError, TrainingError

# polyserve.cli.<name>.<name>
_COMMANDS = (
    "serve", "keys", "chat", "generate", "score", "train", "data", "tokenizer", "convert", "quantize", "eval", "bench",
)  # fmt: skip


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"polyserve.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="polyserve %(version)s")
def polyserve() -> None:
    """Serve multilingual, large-vocabulary language models, talk to them and measure them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code."""
    try:
        code = polyserve.main(arguments, prog_name="polyserve", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "polyserve"
        return _fail(f"{command}: {error.format_message()} (see {command} --help)", 2)
    except click.ClickException as error:
        return _fail(f"polyserve: {error.format_message()}", 1)
    except (ModelLoadError, InvalidRequest, SettingsError, TrainingError) as error:
        return _fail(f"polyserve: {error.message}", 2)
    except PolyServeError as error:
        return _fail(f"polyserve: {error.message}", 1)
    except BrokenPipeError:  # the reader of our output has gone, as in `polyserve generate ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit says nothing more
        return 1
    except (click.Abort, KeyboardInterrupt):
        return 130


def _fail(message: str, code: int) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return code
