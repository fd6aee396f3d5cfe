"""Where an engine computes, and how much of a GPU its cache may take."""

import pytest
import torch

from polyserve.config import EngineConfig
from polyserve.engine.device import cache_memory, choose_device
from polyserve.errors import ModelLoadError
from polyserve_kernels import dispatch

MIB = 2**20


@pytest.fixture(autouse=True)
def _no_gpu_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield
    dispatch.use_backend(None)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_a_gpu_it_is_the_cpu(device):
    assert choose_device(EngineConfig(device=device)) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ModelLoadError, match="device is cuda, but torch finds no GPU here"):
        choose_device(EngineConfig(device="cuda"))


def test_cublas_is_refused_on_a_cpu():
    with pytest.raises(ModelLoadError, match="fast_matmul multiplies with cuBLAS: it needs a GPU"):
        choose_device(EngineConfig(fast_matmul=True))


def test_kernels_that_cannot_answer_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ModelLoadError, match="'triton', which needs a GPU"):
        choose_device(EngineConfig(backend="triton"))


def test_a_gpu_is_chosen_where_there_is_one_and_a_fast_matmul_names_the_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(EngineConfig(fast_matmul=True)) == torch.device("cuda")
    assert dispatch.backend_name(torch.device("cuda")) == "triton+cublas"
    assert choose_device(EngineConfig(device="cpu")) == torch.device("cpu")


def test_the_cache_gets_what_its_share_of_the_gpu_leaves(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700 * MIB, 1000 * MIB))
    left = cache_memory(EngineConfig(gpu_memory_utilization=0.8), torch.device("cuda"), workspace_bytes=100 * MIB)
    assert left == 400 * MIB


def test_weights_that_fill_the_gpu_leave_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * MIB, 1000 * MIB))
    with pytest.raises(ModelLoadError, match="90% of 1000 MiB may be used, 900 MiB are, and a step needs 64 MiB more"):
        cache_memory(EngineConfig(), torch.device("cuda"), workspace_bytes=64 * MIB)


def test_a_figure_for_the_cache_goes_before_everything():
    config = EngineConfig(kv_cache_memory_bytes=5)
    assert cache_memory(config, torch.device("cuda"), workspace_bytes=0) == 5
