"""Which backend answers, and what the numerics id says."""

import logging
from collections.abc import Iterator

import pytest
import torch

from polyserve_kernels import dispatch
from polyserve_kernels.cpu import library

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_choice_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("POLYSERVE_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_logged", set())
    with dispatch.use_backend(None):
        yield


def test_a_cpu_has_kernels_of_its_own(caplog):
    with caplog.at_level(logging.INFO, logger="polyserve.kernels"):
        assert dispatch.backend_name(CPU) == "cpu"
    assert not caplog.records
    isa = library.instruction_set()
    assert dispatch.numerics_id() == f"cpu-{isa}-torch{torch.__version__}-k{dispatch.KERNEL_VERSION}"


def test_without_a_compiled_library_the_reference_answers_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_has_cpu_library", lambda: False)
    with caplog.at_level(logging.INFO, logger="polyserve.kernels"):
        for _ in range(3):
            with dispatch.use_backend(None):
                assert dispatch.backend_name(CPU) == "reference"
    assert [record.message for record in caplog.records] == ["no cpu kernels for cpu: reference answers"]


def test_a_compiled_library_that_is_named_but_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(dispatch, "_has_cpu_library", lambda: False)
    with pytest.raises(ValueError, match="names backend 'cpu', which needs the compiled library"):
        dispatch.use_backend("cpu")


def test_a_named_backend_answers_without_a_word(caplog):
    with caplog.at_level(logging.INFO, logger="polyserve.kernels"), dispatch.use_backend("reference"):
        assert dispatch.backend_name(CPU) == "reference"
    assert not caplog.records


def test_naming_a_missing_backend_is_an_error_and_changes_nothing():
    dispatch.use_backend("reference")
    with pytest.raises(
        ValueError, match=r"use_backend names backend 'abacus'; there is cpu, reference, triton, triton\+cublas"
    ):
        dispatch.use_backend("abacus")
    assert dispatch.backend_name(CPU) == "reference"


def test_a_missing_backend_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("POLYSERVE_BACKEND", "abacus")
    with pytest.raises(
        ValueError, match=r"POLYSERVE_BACKEND names backend 'abacus'; there is cpu, reference, triton, triton\+cublas"
    ):
        dispatch.backend(CPU)


def test_use_backend_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("POLYSERVE_BACKEND", "abacus")
    with dispatch.use_backend("reference"):
        assert dispatch.backend_name(CPU) == "reference"


def test_the_former_choice_comes_back_at_the_end_of_a_with(monkeypatch):
    monkeypatch.setenv("POLYSERVE_BACKEND", "abacus")
    with dispatch.use_backend("reference"):
        pass
    with pytest.raises(ValueError, match="abacus"):
        dispatch.backend(CPU)


def test_the_numerics_id_names_backend_processor_torch_and_kernels(monkeypatch):
    monkeypatch.setattr(dispatch.processor, "name", lambda: "amd-avx512-avx512_bf16")
    expected = f"reference-amd-avx512-avx512_bf16-torch{torch.__version__}-k{dispatch.KERNEL_VERSION}"
    with dispatch.use_backend("reference"):
        assert dispatch.numerics_id() == expected


def test_triton_without_a_gpu_is_refused_unless_it_is_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="names backend 'triton', which needs a GPU, or TRITON_INTERPRET=1"):
        dispatch.use_backend("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with dispatch.use_backend("triton"):
        assert dispatch.backend_name(CPU) == "triton"


def test_triton_that_is_not_installed_is_refused_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the triton package \(pip install 'polyserve-lm\[cuda\]'\)"):
        dispatch.use_backend("triton")


def test_an_overlay_answers_for_what_it_has_and_triton_for_the_rest():
    with dispatch.use_backend("triton"):
        triton = dispatch.backend(CPU)
    with dispatch.use_backend("triton+cublas"):
        both = dispatch.backend(CPU)
        assert dispatch.numerics_id().startswith("triton+cublas-")
    assert both.rms_norm is triton.rms_norm
    assert both.matmul is not triton.matmul


@pytest.mark.parametrize("name", ["reference+cublas", "triton+abacus"])
def test_an_overlay_that_there_is_not_is_an_error(name):
    with pytest.raises(ValueError, match="there is cpu, reference"):
        dispatch.use_backend(name)
