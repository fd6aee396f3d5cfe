"""A run's log becomes pictures and a page that stands alone."""

import re
import shutil
from pathlib import Path

import pytest

from polyserve.cli.main import main
from polyserve_training.pretrain import train
from polyserve_training.run_log import read_log
from support.training_runs import small_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer_folder, data_folder) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    validation = f"validation={{sources: {{held: {data_folder}}}, every: 3, rows: 1}}"
    train(small_recipe(folder, validation, tokenizer=tokenizer_folder, data=data_folder))
    return folder / "run"


def test_every_picture_is_drawn_and_stands_in_the_page(run, capsys):
    assert main(["train", "report", str(run)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == run / "report/index.html"
    drawn = {path.stem for path in page.parent.glob("*.png")}
    assert drawn == {"loss", "learning_rate", "mixture", "speed", "validation"}
    text = page.read_text()
    assert text.count("src='data:image/png;base64,") == 5
    assert not re.search(r"(src|href)='(?!data:)", text)
    assert f"{read_log(run)[-1]['validation']['held/de']['bits_per_byte']:.4f}" in text
    assert "<td>9, of which 0 skipped" in text


def test_a_run_that_is_not_done_can_be_drawn(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    log = tmp_path / "run/log.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert main(["train", "report", str(tmp_path / "run")]) == 0


def test_a_folder_without_a_log_is_named(tmp_path, capsys):
    assert main(["train", "report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"polyserve: {tmp_path / 'log.jsonl'}: has no step to draw\n"


def test_the_log_counts_rows_by_language(run):
    steps = [line for line in read_log(run) if "loss" in line]
    assert all(sum(line["rows"].values()) == 4 for line in steps)
    assert {language for line in steps for language in line["rows"]} > {"en"}
