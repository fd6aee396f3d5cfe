"""`polyserve`: light helps, one line and an exit code for each kind of error."""

import json
import subprocess
import sys

import click
import pytest

from polyserve import __version__
from polyserve.cli import main as cli
from polyserve.errors import EngineDead, InvalidRequest, ModelLoadError, TrainingError

HEAVY = (
    "torch",
    "fastapi",
    "grpc",
    "numpy",
    "transformers",
    "uvicorn",
    "zmq",
    "httpx",
    "msgspec",
    "pydantic",
    "sentencepiece",
    "yaml",
    "matplotlib",
)
COMMANDS = (
    [],
    ["serve"],
    ["chat"],
    ["generate"],
    ["bench"],
    ["bench", "throughput"],
    ["bench", "compare"],
    ["tokenizer"],
    ["tokenizer", "train"],
    ["data"],
    ["data", "prepare"],
    ["data", "tokenize"],
    ["train"],
    ["train", "run"],
    ["train", "report"],
    ["convert"],
)


def failing_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def chat() -> None:
        raise error

    monkeypatch.setattr("polyserve.cli.chat.chat", chat)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(command):
    script = (
        "import json, sys; from polyserve.cli.main import main; code = main(sys.argv[1:]);"
        "print(); print(json.dumps([code, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    assert done.stdout.startswith(f"Usage: {' '.join(['polyserve', *command])} ")
    assert not set(HEAVY) & set(modules)


def test_the_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"polyserve {__version__}\n"


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 2
    shown = capsys.readouterr().err
    for name in ("serve", "chat", "generate", "bench", "tokenizer", "data", "train", "convert"):
        assert f"\n  {name} " in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fly"], "polyserve: No such command 'fly'. (see polyserve --help)"),
        (
            ["serve", "--port", "70000"],
            "polyserve serve: --port must be between 0 and 65535, got 70000 (see polyserve serve --help)",
        ),
        (
            ["serve", "--max-num-seqs", "0"],
            "polyserve serve: --max-num-seqs must be at least 1, got 0 (see polyserve serve --help)",
        ),
        (
            ["bench", "throughput", "--input-len", "x"],
            "polyserve bench throughput: Invalid value for '--input-len': 'x' is not a valid integer."
            " (see polyserve bench throughput --help)",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, line, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == line + "\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ModelLoadError("x.gguf is\ntruncated"), 2, "polyserve: x.gguf is truncated\n"),
        (InvalidRequest("line 3: empty"), 2, "polyserve: line 3: empty\n"),
        (TrainingError("data/index.json: is missing"), 2, "polyserve: data/index.json: is missing\n"),
        (EngineDead("the engine ended"), 1, "polyserve: the engine ended\n"),
        (click.ClickException("no answer"), 1, "polyserve: no answer\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(error, code, line, monkeypatch, capsys):
    failing_with(error, monkeypatch)
    assert cli.main(["chat"]) == code
    assert capsys.readouterr().err.lstrip("\n") == line


def test_a_fault_of_ours_is_not_dressed_up(monkeypatch):
    failing_with(ZeroDivisionError("ours"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        cli.main(["chat"])


def test_a_commands_result_is_the_exit_code(monkeypatch):
    @click.command()
    def chat() -> int:
        return 7

    monkeypatch.setattr("polyserve.cli.chat.chat", chat)
    assert cli.main(["chat"]) == 7
