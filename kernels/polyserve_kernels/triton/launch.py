"""The one place where kernels are launched: what every launch has in common, and who else may want to see them.

A launch pins what Triton would choose by itself: no multiplication is fused with an addition that the source keeps
apart, so a formula has the same bits in every kernel that spells it the same way. Launchers never wait for the device:
they look at shapes, never at what a tensor holds, so a launch can be captured in a CUDA graph, and compiled from `meta`
tensors.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)

Observer = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]

_observer: tuple[int, Observer] | None = None  # an architecture, and what is shown its launches


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
    """Run `kernel` on a grid of programs; nothing if the grid is empty.  constants: its tl.constexpr arguments."""
    if 0 in grid:
        return
    options = dict(constants, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=False)
    if _observer is not None:
        _observer[1](kernel, grid, args, options)
        return
    if not INTERPRETED:
        kernel[grid](*args, **options)
        return
    with warnings.catch_warnings():  # numpy, which the interpreter computes in, warns of infinities
        warnings.simplefilter("ignore", RuntimeWarning)
        kernel[grid](*args, **options)


def architecture(device: torch.device) -> int:
    """What launches on `device` are tuned for: 90 for sm_90. The interpreter computes as on sm_90."""
    if _observer is not None:
        return _observer[0]
    if INTERPRETED:
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@contextmanager
def observed(arch: int, observer: Observer) -> Iterator[None]:
    """Show launches to `observer` instead of running them, tuned for `arch`."""
    global _observer
    former, _observer = _observer, (arch, observer)
    try:
        yield
    finally:
        _observer = former
