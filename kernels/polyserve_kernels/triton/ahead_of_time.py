"""Compiling kernels for an architecture that is not there: what calls of operations would launch, as machine code.

    ahead_of_time.compile_calls({"matmul": (90, lambda: ops.matmul(x, w))})  # x, w on `meta`: shapes without contents
How       calls run with their launches observed instead of done; Triton then specialises each launch as it would for
          real tensors, and compiles it for the architecture that is asked for, since a stand-in answers for the driver
Once      launches that compile to the same code share one compilation, here and in Triton's cache (TRITON_CACHE_DIR)
Needs     a process without TRITON_INTERPRET
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from polyserve_kernels.dispatch import triton_to_compile
from polyserve_kernels.triton.launch import INTERPRETED, observed
from polyserve_kernels.triton.machine_code import Binary, Code, read_codes

ARCHITECTURES = (80, 90, 100)
_READ_TOGETHER = 32  # kernels


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel as one call launches it."""

    kernel: str
    arch: int
    grid: tuple[int, ...]
    types: dict[str, str]  # of the arguments that are not constants, as {"x_ptr": "*bf16", "T": "i32"}
    constants: dict[str, str]  # tl.constexpr arguments
    num_warps: int
    num_stages: int
    argument_bytes: int  # of its tensors, each counted once: what it moves if nothing is read twice
    code: Code


def compile_calls(calls: Mapping[str, tuple[int, Callable[[], object]]]) -> dict[str, list[Launch]]:
    """The launches of each call, in order, compiled for its architecture (80, 90 or 100), on all cores.

    Raises RuntimeError, from what Triton raised, where a kernel cannot be compiled.
    """
    if INTERPRETED:
        raise RuntimeError("kernels are compiled in a process without TRITON_INTERPRET, and here it is set")
    pending: dict[str, list[_Compiling]] = {name: [] for name in calls}
    with ThreadPoolExecutor(os.cpu_count()) as threads, triton_to_compile():
        with _no_driver() as stand_in, triton.AsyncCompileMode(threads):
            for name, (arch, call) in calls.items():
                stand_in.arch = arch
                with observed(arch, _Observer(arch, pending[name])):
                    call()
            for name, launches in pending.items():
                for compiling in launches:
                    compiling.wait(name)
        codes = _read_all([compiling for launches in pending.values() for compiling in launches], threads)
        return {
            name: [compiling.launch(codes[compiling.compiled.hash]) for compiling in launches]
            for name, launches in pending.items()
        }


def _read_all(compiled: Sequence["_Compiling"], threads: Executor) -> dict[str, Code]:
    """The machine code of each by its hash, read once, some together."""
    by_arch: dict[int, dict[str, Binary]] = {}
    for compiling in compiled:
        by_arch.setdefault(compiling.arch, {})[compiling.compiled.hash] = compiling.binary
    reading = [
        (hashes, threads.submit(read_codes, [binaries[each] for each in hashes], arch))
        for arch, binaries in by_arch.items()
        for hashes in _groups(list(binaries), _READ_TOGETHER)
    ]
    return {each: code for hashes, codes in reading for each, code in zip(hashes, codes.result(), strict=True)}


def _groups(hashes: list[str], size: int) -> Iterator[list[str]]:
    return (hashes[start : start + size] for start in range(0, len(hashes), size))


@dataclass(frozen=True, slots=True)
class _Compiling:
    arch: int
    kernel: Any
    grid: tuple[int, ...]
    options: dict[str, Any]
    argument_bytes: int
    compiled: Any  # a compiled kernel, or one that Triton has in work

    def wait(self, call: str) -> None:
        try:
            _ = self.compiled.hash
        except Exception as error:
            raise RuntimeError(f"{call}: {self.kernel.__name__} does not compile for sm_{self.arch}") from error

    @property
    def binary(self) -> Binary:
        metadata = self.compiled.metadata
        return Binary(
            self.compiled.asm["cubin"],
            num_warps=metadata.num_warps,
            dynamic_shared_bytes=metadata.shared,
            tensor_columns=metadata.tmem_size or 0,
        )

    def launch(self, code: Code) -> Launch:
        signature: dict[str, str] = self.compiled.src.signature
        return Launch(
            kernel=self.kernel.__name__,
            arch=self.arch,
            grid=self.grid,
            types={name: str(kind) for name, kind in signature.items() if kind != "constexpr"},
            constants={name: str(self.options[name]) for name in signature if name in self.options},
            num_warps=self.options["num_warps"],
            num_stages=self.options["num_stages"],
            argument_bytes=self.argument_bytes,
            code=code,
        )


@dataclass(frozen=True, slots=True)
class _Observer:
    """Has each launch that it is shown compiled, and remembers it."""

    arch: int
    launches: list[_Compiling]

    def __call__(self, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        tensors = {id(x): x for x in _tensors(args)}
        argument_bytes = sum(x.numel() * x.element_size() for x in tensors.values())
        compiled = kernel.warmup(*args, grid=grid, **options)
        self.launches.append(_Compiling(self.arch, kernel, grid, options, argument_bytes, compiled))


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """Those in nested tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


class _StandIn:
    """What Triton asks of a driver when it compiles; each architecture counts as a device of its own."""

    arch = 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda")


@contextmanager
def _no_driver() -> Iterator[_StandIn]:
    former = driver._active  # `active` would look for a GPU
    stand_in = _StandIn()
    driver.set_active(stand_in)
    try:
        yield stand_in
    finally:
        driver.set_active(former)
