"""Shared by the kernels' tests: random numbers that are the same in every run, and thread counts that are put back.

With POLYSERVE_TEST_DEVICE=cuda the contracts' tests make their tensors on a GPU, where Triton's kernels are compiled
instead of interpreted: `pytest -m gpu`.
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from polyserve_kernels import dispatch, memory
from polyserve_kernels.cpu import library
from support.interpreter import patch_once_a_launch
from support.poison import poisoned_memory

patch_once_a_launch()

TEST_DEVICE = os.environ.get("POLYSERVE_TEST_DEVICE", "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what a GPU can run: tests of contracts, on Triton."""
    for item in items:
        params = getattr(item, "callspec", None)
        if item.path.parent == Path(__file__).parent and params and params.params.get("backend") == "triton":
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _same_numbers_on_one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _ends_of_weights_that_sanitizers_see() -> Iterator[None]:
    """With the library of `make sanitize` weights lie in memory of malloc, whose ends it guards."""
    with pytest.MonkeyPatch.context() as patch:
        if "POLYSERVE_CPU_LIBRARY" in os.environ:
            patch.setattr(memory, "zeros", lambda shape, dtype: torch.zeros(shape, dtype=dtype))
        yield


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn. A file whose whole contract holds for all of them says
    `pytestmark = pytest.mark.usefixtures("backend")`."""
    if request.param == "reference" and TEST_DEVICE != "cpu":
        pytest.skip("the reference is specified on a CPU")
    default_device = nullcontext() if TEST_DEVICE == "cpu" else torch.device(TEST_DEVICE)
    with default_device, dispatch.use_backend(request.param):
        yield request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory is full of NaN during the test: a kernel that leaves an element unwritten fails it."""
    with poisoned_memory():
        yield


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


INSTRUCTION_SETS = ["avx2", "avx512", "avx512bf16"]


@pytest.fixture(params=INSTRUCTION_SETS)
def _instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """The C++ kernels as each instruction set of this processor computes them."""
    choose = library.library().ps_choose
    usual = library.instruction_set().encode()
    if choose(request.param.encode()) is None:
        choose(usual)
        pytest.skip(f"this processor has no {request.param}")
    with dispatch.use_backend("cpu"):
        yield
    choose(usual)
