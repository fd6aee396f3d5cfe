"""What is said of the processor: machines whose products have other bits have other names."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polyserve_kernels import processor

Machine = Callable[..., str]  # (what /proc/cpuinfo says, bfloat16 instructions) -> the processor's name


@pytest.fixture
def name_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    def name_of(cpu_info: str, *bfloat16: str) -> str:
        (tmp_path / "cpuinfo").write_text(cpu_info)
        monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(bfloat16, True) | {"avx": True})
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        return processor.name.__wrapped__()

    return name_of


def test_the_name_has_the_maker_and_the_instructions(name_of):
    assert name_of("processor\t: 0\nvendor_id\t: AuthenticAMD\n", "avx512_bf16") == "amd-avx512-avx512_bf16"


def test_of_several_instructions_for_bfloat16_the_preferred_one_is_named(name_of):
    assert name_of("vendor_id : GenuineIntel\n", "avx512_bf16", "amx_bf16") == "intel-avx512-amx_bf16"


def test_a_processor_without_them_has_another_name_than_one_with_them(name_of):
    assert name_of("vendor_id : GenuineIntel\n") == "intel-avx512"


def test_an_unknown_maker_keeps_its_own_spelling(name_of):
    assert name_of("CPU implementer\t: 0x41\n") == "0x41-avx512"


def test_where_the_maker_is_not_told_the_kind_of_processor_is(name_of, monkeypatch):
    monkeypatch.setattr(processor.platform, "machine", lambda: "ARM64")
    assert name_of("") == "arm64-avx512"


def test_this_machine_has_a_name():
    assert torch.backends.cpu.get_cpu_capability().lower() in processor.name()
