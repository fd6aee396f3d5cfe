"""`polyserve bench compare` with stand-in engines: turns, failures, the document that comes last."""

import json
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from polyserve_benchmarks.compare.plan import Comparison, Run, runs_of_a_round
from polyserve_benchmarks.compare.process import EngineFailed
from polyserve_benchmarks.compare.run import run
from polyserve_benchmarks.workload import Workload
from support.checkpoints import make_checkpoint
from support.live_server import wait_until

STAND_IN = Path(__file__).with_name("stand_in.py").read_text(encoding="utf-8")
WORKLOAD = Workload(num_streams=[1, 2], input_len=6, output_len=8)
MEMORY, MATRIX = 1e9, 1e12  # bytes and operations a second of a made-up machine


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("compared"), "llama")


class Race:
    """A folder of environments and engines, and what the engines wrote down."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder, self._model = folder, model
        self._scripts: dict[str, Path] = {}

    def enter(self, name: str, *, fault: str = "") -> None:
        """An engine whose environment is this interpreter's."""
        script = self._folder / f"{name}.py"
        text = STAND_IN.replace("@NAME@", name).replace("@DIARY@", str(self._folder)).replace("@FAULT@", fault)
        script.write_text(text, encoding="utf-8")
        self._scripts[name] = script
        python = self._folder / "peers" / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)

    def run(self, engines: str, **options: object) -> dict[str, object]:
        comparison = Comparison(
            **{"model": str(self._model), "engines": engines, "prompt_lens": [6, 9], "rounds": 2, **options},
            peers=str(self._folder / "peers"),
            timeout_s=60,
        )
        return run(comparison, WORKLOAD, scripts=self._scripts, limits=lambda _: (MEMORY, MATRIX))

    @property
    def turns(self) -> list[list[str]]:
        """Engine, streams, tokens, other engines that ran meanwhile: for each request after the warm-up."""
        lines = [line.split() for line in (self._folder / "turns").read_text().splitlines()]
        return [line for line in lines if int(line[2]) == WORKLOAD.output_len]


@pytest.fixture
def race(tmp_path: Path, model_folder: Path) -> Race:
    return Race(tmp_path, model_folder)


def test_engines_take_turns_and_another_begins_each_round(race):
    for name in ("polyserve", "vllm"):
        race.enter(name)
    race.run("polyserve,vllm")
    turns = [(name, int(streams)) for name, streams, *_ in race.turns]
    assert turns == [
        *(("polyserve", 1), ("vllm", 1), ("polyserve", 2), ("vllm", 2)),
        *(("vllm", 1), ("polyserve", 1), ("vllm", 2), ("polyserve", 2)),
    ]


def test_whoever_waits_is_stopped(race):
    for name in ("polyserve", "vllm"):
        race.enter(name)
    race.run("polyserve,vllm")
    assert [others for _, _, _, *others in race.turns] == [[]] * 8


def test_the_last_line_is_the_document_and_a_file_holds_it_too(race, tmp_path, capsys):
    race.enter("polyserve")
    file = tmp_path / "results" / "compare.json"
    document = race.run("polyserve", out=str(file))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
    assert json.loads(file.read_text(encoding="utf-8")) == document


def test_a_document_says_what_was_compared(race, model_folder):
    for name in ("polyserve", "vllm"):
        race.enter(name)
    document = race.run("polyserve,vllm", threads=1)
    assert (document["first"], list(document["engines"])) == ("polyserve", ["polyserve", "vllm"])
    assert (document["model"], document["precision"], document["threads"]) == (model_folder.name, "bf16", 1)
    assert document["engines"]["vllm"]["version"] == "1.0"
    assert document["engines"]["vllm"]["settings"] == {"threads": 1}
    assert document["engines"]["vllm"]["same_first_tokens"] == 1.0
    assert set(document["engines"]["vllm"]["tokens_per_second"]) == {
        *("prompt_6", "prompt_9", "decode_1", "output_1", "decode_2", "output_2")
    }
    assert document["limits"]["bytes_per_second_by_round"] == [MEMORY, MEMORY]


def test_a_document_has_no_path_of_this_machine(race, tmp_path):
    race.enter("polyserve")
    assert str(tmp_path.parent) not in json.dumps(race.run("polyserve,vllm"))


def test_an_engine_that_is_not_installed_is_named_and_left_out(race, capsys):
    race.enter("polyserve")
    document = race.run("polyserve,vllm")
    why = "it is not installed: benchmarks/peers.sh vllm"
    assert document["left_out"] == {"vllm": why}
    assert list(document["engines"]) == ["polyserve"]
    assert f"vllm: left out: {why}" in capsys.readouterr().out.splitlines()


def test_an_engine_that_cannot_read_the_model_is_left_out(race):
    for name in ("polyserve", "llama.cpp"):
        race.enter(name)
    document = race.run("polyserve,llama.cpp")
    assert document["left_out"] == {"llama.cpp": "it reads GGUF files, and this model is a folder"}


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("loading", "ValueError: no such model"),
        ("warm-up", "RuntimeError: out of luck"),
        ("round", "RuntimeError: out of luck"),
        ("exit", "it ended: a line on standard output that is not the protocol's | a last word"),
        ("length", "asked for 1 x 8 tokens, got 1 x [7]"),
    ],
)
def test_an_engine_that_fails_is_left_out_and_the_rest_goes_on(race, fault, why):
    race.enter("polyserve")
    race.enter("vllm", fault=fault)
    document = race.run("polyserve,vllm")
    assert document["left_out"] == {"vllm": why}
    assert list(document["engines"]) == ["polyserve"]
    assert [name for name, *_ in race.turns].count("polyserve") == 4


def test_the_next_engine_is_compared_with_where_the_first_fails(race):
    race.enter("polyserve", fault="round")
    for name in ("vllm", "ctranslate2"):
        race.enter(name)
    document = race.run("polyserve,vllm,ctranslate2")
    assert document["first"] == "vllm"
    assert set(document["engines"]["vllm"]["first_is_faster_by"].values()) == {1.0}


def test_no_engine_at_all_is_an_error_that_says_why(race):
    race.enter("polyserve", fault="loading")
    with pytest.raises(
        EngineFailed, match=r"^no engine is left: polyserve: ValueError: no such model; vllm: it is not"
    ):
        race.run("polyserve,vllm")


def has_ended(pid: str) -> bool:
    """Killed, and perhaps not yet missed by its new parent."""
    with suppress(OSError):
        return ") Z " in Path("/proc", pid, "stat").read_text()
    return True


def test_no_engine_outlives_the_comparison_nor_what_it_started(race, tmp_path):
    race.enter("polyserve", fault="helper")
    race.enter("vllm")
    race.run("polyserve,vllm")
    for file in (*tmp_path.glob("*.pid"), tmp_path / "helper"):
        wait_until(partial(has_ended, file.read_text()))


def test_a_run_that_two_figures_need_is_made_once():
    comparison = Comparison(prompt_lens=[6, 9])
    assert runs_of_a_round(comparison, WORKLOAD) == [
        *(Run(1, 6, 1), Run(1, 9, 1), Run(1, 6, 8)),
        *(Run(2, 6, 1), Run(2, 6, 8)),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engines": "polyserve,tgi"}, "engines must be among .*, got 'tgi'"),
        ({"engines": "vllm,vllm"}, "engines must be named once each, got 'vllm,vllm'"),
        ({"precision": "fp8"}, "precision must be one of stored, bf16, int8, int4, got 'fp8'"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"prompt_lens": [128, 0]}, "prompt_lens must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Comparison(**options)
