"""Which backend answers: the one named by `use_backend`, else by POLYSERVE_BACKEND, else the first that a device has.

A backend that is named but missing is an error. Where a device's best one is missing, the next one answers, which is
logged once. A name such as `triton+cublas` is a backend with some operations from elsewhere: they are faster, and a
row's bits then depend on its company, so they are used only where they are named.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace, TracebackType
from typing import Any, cast

import torch

from polyserve_kernels import processor
from polyserve_kernels.backend import Backend

KERNEL_VERSION = 4  # goes up with every change that can change a result's bits

_log = logging.getLogger("polyserve.kernels")


def _load_reference() -> Backend:
    from polyserve_kernels.reference import backend

    return backend


def _load_triton() -> Backend:
    from polyserve_kernels.triton import backend

    return backend


def _load_cpu() -> Backend:
    from polyserve_kernels.cpu import backend

    return backend


def _load_cublas() -> Any:
    from polyserve_kernels import cublas

    return cublas


def _load_flash() -> Any:
    from polyserve_kernels.flash import attention

    return attention


_LOADERS: dict[str, Callable[[], Backend]] = {"cpu": _load_cpu, "reference": _load_reference, "triton": _load_triton}
_OVERLAYS: dict[str, Callable[[], Any]] = {
    "cublas": _load_cublas,
    "flash": _load_flash,
}  # modules with some operations, over triton's
_BEST_FIRST = {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")}  # by device type

_named: str | None = None  # what `use_backend` said
_chosen: dict[str, tuple[str, Backend]] = {}  # device type -> name and backend; emptied when the name changes
_logged: set[str] = set()  # device types whose fallback was logged


class use_backend:
    """Name the backend of this process from now on; None returns to the environment's or the device's choice.

    As a context manager it restores the former choice at its end. Raises ValueError, and changes nothing, if the
    backend is missing.
    """

    def __init__(self, name: str | None) -> None:
        if name is not None:
            _load(name, said_by="use_backend")
        self._former = _named
        _name(name)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _name(self._former)


@contextmanager
def triton_to_compile() -> Iterator[None]:
    """Triton answers for tensors on `meta`, whose launches can be compiled but not run: this needs no GPU."""
    former = _chosen.get("meta")
    _chosen["meta"] = ("triton", _load_triton())
    try:
        yield
    finally:
        _chosen.pop("meta")
        if former is not None:
            _chosen["meta"] = former


def backend(device: torch.device) -> Backend:
    """The backend that answers for tensors on `device`."""
    chosen = _chosen.get(device.type)
    if chosen is None:
        chosen = _chosen[device.type] = _choose(device.type)
    return chosen[1]


def backend_name(device: torch.device) -> str:
    """The name of the backend that answers for tensors on `device`."""
    backend(device)
    return _chosen[device.type][0]


def numerics_id(device: torch.device | None = None) -> str:
    """What the bits of results depend on, in one word: backend, processor, torch and kernels. Default device: the CPU.

    For example `cpu-avx512bf16-torch2.13.0-k1`, `reference-intel-avx512-amx_bf16-torch2.13.0-k1`, or
    `triton-sm_90-torch2.13.0-k1`.
    """
    device = device or torch.device("cpu")
    if device.type == "cuda":
        hardware = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    elif backend_name(device) == "cpu":
        hardware = _cpu_instruction_set()
    else:
        hardware = processor.name()
    return f"{backend_name(device)}-{hardware}-torch{torch.__version__}-k{KERNEL_VERSION}"


def _name(name: str | None) -> None:
    global _named
    _named = name
    _chosen.clear()


def _choose(device_type: str) -> tuple[str, Backend]:
    if _named is not None:
        return _named, _load(_named, said_by="use_backend")
    from_environment = os.environ.get("POLYSERVE_BACKEND")
    if from_environment:
        return from_environment, _load(from_environment, said_by="POLYSERVE_BACKEND")
    best_first = _BEST_FIRST.get(device_type, ("reference",))
    name = next(name for name in best_first if name in _LOADERS and _lacks(name) is None)
    if name != best_first[0] and device_type not in _logged:
        _logged.add(device_type)
        _log.info("no %s kernels for %s: %s answers", best_first[0], device_type, name)
    return name, _load(name, said_by=f"the choice for {device_type}")


def _load(name: str, *, said_by: str) -> Backend:
    base, *overlays = name.split("+")
    unknown = [overlay for overlay in overlays if base != "triton" or overlay not in _OVERLAYS]
    if base not in _LOADERS or unknown:
        known = [*_LOADERS, *(f"triton+{overlay}" for overlay in _OVERLAYS)]
        raise ValueError(f"{said_by} names backend {name!r}; there is {', '.join(known)}")
    for part in (base, *overlays):
        lack = _lacks(part)
        if lack is not None:
            raise ValueError(f"{said_by} names backend {name!r}, which {lack}")
    chosen = _LOADERS[base]()
    for overlay in overlays:
        chosen = _overlaid(chosen, _OVERLAYS[overlay]())
    return chosen


def _overlaid(base: Backend, overlay: Any) -> Backend:
    """`base` with the operations that `overlay` has."""
    operations = [name for name in vars(Backend) if not name.startswith("_")]
    return cast(Backend, SimpleNamespace(**{x: getattr(overlay, x, None) or getattr(base, x) for x in operations}))


def _lacks(name: str) -> str | None:
    """What is missing here for a backend to answer."""
    if name == "cpu" and not _has_cpu_library():
        return "needs the compiled library: install PolyServe where there is a C++ compiler, on x86-64 with AVX2"
    if name == "flash" and importlib.util.find_spec("flash_attn") is None:
        return "needs the flash-attn package (pip install 'polyserve-lm[flash]')"
    if name != "triton":
        return None
    if importlib.util.find_spec("triton") is None:
        return "needs the triton package (pip install 'polyserve-lm[cuda]')"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs a GPU, or TRITON_INTERPRET=1 to be interpreted on a CPU, slowly"
    return None


def _cpu_instruction_set() -> str:
    from polyserve_kernels.cpu import library

    return library.instruction_set()


def _has_cpu_library() -> bool:
    from polyserve_kernels.cpu import library

    return library.runs_here()
