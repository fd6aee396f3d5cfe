"""Puts `tests/` on the import path, so that tests share builders (`from support.x import y`), gives torch one thread in
each process, since workers share the cores, keeps logging as it was, and finds the real models that are packages."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
if os.environ.get("POLYSERVE_TEST_DEVICE", "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels run on CPU tensors; read when triton is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the servers that tests start
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests with more threads do not spin while another worker computes

from polyserve.errors import ModelLoadError
from polyserve.model.weights.resolve import resolve


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The command line sends log lines to a test's own standard error, which ends with the test."""
    logger = logging.getLogger("polyserve")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


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
