"""`polyserve generate`, with a tiny model: prompts to text, files to files, and nothing run if anything is wrong."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyserve.cli.main import main

GREEDY = ("--temperature", "0", "--max-tokens", "5", "--dtype", "float32")
CHAT = ("--chat-template", "polylm-chat")


@pytest.fixture
def generate(tiny_model_folder: Path) -> Callable[..., int]:
    return lambda *arguments: main(["generate", str(tiny_model_folder), *GREEDY, *arguments])


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: object) -> Path:
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(path: Path) -> list[str]:
    return [row["outputs"][0]["text"] for row in read(path)]


def test_a_file_of_prompts_is_answered_in_order_with_what_each_line_asked_for(generate, file_of, tmp_path, capsys):
    rows = [
        {"id": "b", "prompt": "the bird"},
        {"id": "a", "prompt": [3, 4, 5], "max_tokens": 2, "n": 2, "ignore_eos": True},
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "logprobs": 1, "prompt_logprobs": 0},
    ]
    out = tmp_path / "out.jsonl"
    assert generate("--input", str(file_of(*rows)), "--output", str(out), *CHAT) == 0
    assert capsys.readouterr().out == ""
    first, second, third = read(out)
    assert (first["id"], second["id"], "id" in third) == ("b", "a", False)
    assert [choice["index"] for choice in second["outputs"]] == [0, 1]
    assert [len(choice["token_ids"]) for choice in second["outputs"]] == [2, 2]
    assert second["outputs"][0]["finish_reason"] == "length"
    assert second["prompt_tokens"] == 3
    [choice] = third["outputs"]
    assert [entry["token_id"] for entry in choice["logprobs"]] == choice["token_ids"]
    assert choice["logprobs"][0]["top"][0]["logprob"] == choice["logprobs"][0]["logprob"]
    assert bytes(choice["logprobs"][0]["bytes"]).decode(errors="replace") == choice["logprobs"][0]["token"]
    assert third["prompt_logprobs"][0] is None
    assert len(third["prompt_logprobs"]) == third["prompt_tokens"]
    assert not list(tmp_path.glob("*.part"))


def test_a_prompt_on_the_command_line_prints_what_the_file_would_hold(generate, file_of, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    generate("--input", str(file_of({"prompt": "the bird"}, {"prompt": "snow"})), "--output", str(out))
    assert generate("-p", "the bird") == 0
    assert capsys.readouterr().out == texts(out)[0] + "\n"
    assert generate("-p", "the bird", "-p", "snow") == 0
    assert capsys.readouterr().out == "--- prompt 1\n{}\n--- prompt 2\n{}\n".format(*texts(out))


def test_prompts_and_requests_can_come_from_standard_input(generate, monkeypatch, capsys):
    generate("-p", "the bird")
    wanted = capsys.readouterr().out.removesuffix("\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("the bird\n"))
    generate("-p", "-")
    assert capsys.readouterr().out == wanted + "\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "the bird"}\n')))
    generate("-i", "-")
    assert json.loads(capsys.readouterr().out)["outputs"][0]["text"] == wanted


def test_a_line_the_model_cannot_answer_is_named_and_nothing_is_written(generate, file_of, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    out.write_text("old\n")
    rows = [{"prompt": "good"}, {"prompt": [1, 999_999]}]
    assert generate("--input", str(file_of(*rows)), "--output", str(out)) == 2
    assert capsys.readouterr().err.startswith("polyserve: line 2: the prompt holds token id 999999;")
    assert out.read_text() == "old\n"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --prompt or --input must be given, and not both"),
        (["-p", "a", "-i", "b"], "either --prompt or --input must be given, and not both"),
        (["-p", "a", "--logprobs", "1"], "--logprobs has no effect on printed text: give --output as well"),
        (["-p", "a", "--top-p", "2"], "--top-p must be more than 0 and at most 1, got 2.0"),
        (["-i", "/nowhere/in.jsonl"], "--input /nowhere/in.jsonl: No such file or directory"),
        (["-p", "a", "-o", "/nowhere/out.jsonl"], "--output /nowhere/out.jsonl: No such file or directory"),
    ],
)
def test_wrong_usage_is_noticed_before_a_model_is_loaded(arguments, message, capsys):
    assert main(["generate", "no-such-model/anywhere/at/all", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_bad_file_is_noticed_before_a_model_is_loaded(file_of, capsys):
    path = file_of({"prompt": "good"}, {"prompt": "bad", "temprature": 0})
    assert main(["generate", "./no-such-model", "-i", str(path)]) == 2
    assert capsys.readouterr().err == "polyserve: line 2: unknown field 'temprature'\n"


def test_a_model_that_is_not_there_is_one_line(capsys):
    assert main(["generate", "./no-such-model", "-p", "a"]) == 2
    assert capsys.readouterr().err == "polyserve: ./no-such-model: no such file or folder\n"
