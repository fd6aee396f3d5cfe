"""Puts `tests/` on the import path, so that tests share builders (`from support.x import y`), and finds the real models
that come as packages."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from polyserve.errors import ModelLoadError
from polyserve.model.weights.resolve import resolve


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct, a GGUF file."""
    return _packaged("smollm2")


@pytest.fixture(scope="session")
def gemma3_file() -> Path:
    """Gemma 3 270M, a GGUF file."""
    return _packaged("gemma3-270m")


def _packaged(model: str) -> Path:
    try:
        return resolve(model)
    except ModelLoadError as error:
        pytest.skip(str(error))
