"""`polyserve bench start`: a tiny model's server is started, asked for a token and ended."""

import json
from pathlib import Path

import pytest

from polyserve.errors import PolyServeError
from polyserve_benchmarks.start import Starts, run
from support.checkpoints import make_checkpoint


def test_a_start_is_timed_until_it_is_ready_and_until_its_first_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(tmp_path / "tiny", "llama")
    document = run(Starts(model=str(model), rounds=1, flags="--threads 1"))
    [start] = document["results"]
    assert 0 < start["ready"] < start["first_token"]
    assert start["processor"] > 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document


def test_a_server_that_does_not_start_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PolyServeError, match="the server did not start"):
        run(Starts(model=str(tmp_path / "nothing"), rounds=1))
