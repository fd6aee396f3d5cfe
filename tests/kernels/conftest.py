"""Shared by the kernels' tests: random numbers that are the same in every run, and thread counts that are put back."""

from collections.abc import Iterator

import pytest
import torch

from polyserve_kernels import dispatch


@pytest.fixture(autouse=True)
def _same_numbers_on_one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn. A file whose whole contract holds for all of them says
    `pytestmark = pytest.mark.usefixtures("backend")`."""
    with dispatch.use_backend(request.param):
        yield request.param


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param
