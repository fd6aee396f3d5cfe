"""Damaged checkpoints, hundreds of them: each is a model or one clear line, never a crash or memory without end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.checkpoints import Family, make_checkpoint


def load_damaged(path: Path, kind: str, count: int, *, first_seed: int = 0) -> dict[str, int]:
    """How many loaded and how many were refused, in a process of their own."""
    command = [sys.executable, "-m", "support.damaged_files", str(path), kind, str(count), str(first_seed)]
    folder = Path(__file__).parents[1]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, f"exit code {result.returncode}: {result.stderr[-4000:]}"
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("family", "count"), [("llama", 40), ("gpt2", 40)])
def test_a_damaged_gguf_file_is_read_or_refused_in_one_line(family: Family, count: int, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, family, format="gguf-q8_0")
    assert load_damaged(path, "gguf", count)["refused"] > count // 4


def test_a_damaged_safetensors_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    assert load_damaged(folder / "model.safetensors", "safetensors", 60)["refused"] > 15


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3"])
def test_500_damaged_gguf_files_of_a_family(family: Family, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, family, format="gguf-q4_0")
    assert load_damaged(path, "gguf", 500, first_seed=1000)["refused"] > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_200_damaged_safetensors_files(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "gpt2")
    assert load_damaged(folder / "model.safetensors", "safetensors", 200, first_seed=1000)["refused"] > 50
