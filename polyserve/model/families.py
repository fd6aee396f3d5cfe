"""From a checkpoint's own description to a ModelConfig. No torch, so that a server's front may ask too.

A new family is one function in `hf_families` (and one in `gguf_families`, if it has GGUF files), one name table in
`weights/names.py` and one parity test.
"""

from pathlib import Path

from polyserve.gguf import read_gguf
from polyserve.model.config import ModelConfig
from polyserve.model.gguf_families import config_from_gguf
from polyserve.model.hf_families import config_from_folder

__all__ = ["config_from_folder", "config_from_gguf", "read_config"]


def read_config(path: Path) -> ModelConfig:
    """The config of a folder with a `config.json`, or of a .gguf file. Raises ModelLoadError."""
    return config_from_folder(path) if path.is_dir() else config_from_gguf(read_gguf(path))
