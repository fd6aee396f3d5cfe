"""The model of a comparison by name, and the folder under the user's cache for everything that is made from it.

Besides what `resolve` finds there are shapes: random weights in a published checkpoint's layout, written once.
"""

import os
import shutil
from pathlib import Path

from gguf import Keys, LlamaFileType

from polyserve.errors import ModelLoadError
from polyserve.gguf import read_gguf
from polyserve.model.weights.resolve import resolve

SHAPES = {"polylm-1.7b-shape": (24, 2048, 16, 256_000)}  # layers, hidden size, heads, vocabulary
ROOM = 1.1  # of the disk that a shape needs


def user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polyserve"


def find(model: str) -> Path:
    """A folder or a .gguf file. Raises ModelLoadError."""
    return written_shape(model) if model in SHAPES else resolve(model)


def written_shape(name: str) -> Path:
    """The folder of a shape, made if it is not there. Raises ModelLoadError if the disk has no room for it."""
    folder = user_cache() / "compare" / name
    if folder.is_dir():
        return folder
    from polyserve_benchmarks.make_polylm import Shape, weight_bytes, write_checkpoint

    shape = Shape(*SHAPES[name])
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted, free = int(weight_bytes(shape) * ROOM), shutil.disk_usage(folder.parent).free
    if free < wanted:
        raise ModelLoadError(
            f"{name}: {folder.parent} needs {wanted / 1e9:.1f} GB of disk, and {free / 1e9:.1f} are free"
        )
    unfinished = folder.with_name(f".{name}-{os.getpid()}")
    try:
        write_checkpoint(unfinished, shape)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def made_from(path: Path) -> Path:
    """The folder of everything made from this model: named after it, its size and its time of change."""
    whole = path / "model.safetensors"
    state = whole.stat() if whole.exists() else path.stat()
    return user_cache() / "compare" / f"{path.stem}-{state.st_size}-{int(state.st_mtime)}"


def precision_name(precision: str, path: Path) -> str:
    """As people call it: Q4_1, Q4_K_M, bf16, int8, int4."""
    if precision != "stored":
        return precision
    if path.is_dir():
        return "bf16"
    file_type = read_gguf(path).metadata.get(Keys.General.FILE_TYPE)
    return LlamaFileType(file_type).name.removeprefix("MOSTLY_") if isinstance(file_type, int) else "GGUF"
