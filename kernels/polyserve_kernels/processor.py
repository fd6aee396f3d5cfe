"""What of a processor the bits of results on a CPU depend on.

MKL and oneDNN choose the code of a product by the processor's maker and by its instructions for bfloat16. torch's name
for the instructions that its own loops use, such as avx512, says neither.
"""

import platform
from functools import cache
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
_MAKERS = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}  # as a processor calls itself; others stay as they are
_BFLOAT16 = ("amx_bf16", "avx512_bf16")  # instructions that multiply bfloat16 and sum in float32, the preferred first


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself, so that torch's product of such matrices is a fast one."""
    return bool(_bfloat16_instructions())


@cache
def name() -> str:
    """Maker and instructions in one word, as `amd-avx512-avx512_bf16`."""
    instructions = torch.backends.cpu.get_cpu_capability().lower()
    return "-".join((_maker(), instructions, *_bfloat16_instructions()[:1]))


def _bfloat16_instructions() -> list[str]:
    capabilities = torch.cpu.get_capabilities()
    return [each for each in _BFLOAT16 if capabilities.get(each)]


def _maker() -> str:
    """The maker as Linux reports it, elsewhere the kind of processor."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    for field, _, value in (line.partition(":") for line in lines):
        if field.strip() in ("vendor_id", "CPU implementer"):
            return _MAKERS.get(value.strip(), value.strip().lower())
    return platform.machine().lower()
