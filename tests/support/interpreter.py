"""Triton's interpreter, faster: it patches `triton.language` anew for every function that a kernel calls, where once a
launch is enough. That is a third of the time of tests that run kernels."""

import inspect
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_patch = interpreter._patch_lang
_patched: set[Any] = set()  # modules, during a launch


def patch_once_a_launch() -> None:
    """Let functions that kernels call find their language as the kernel's launch has patched it."""
    interpreter._patch_lang = _patch_what_is_missing


def _patch_what_is_missing(function: Any) -> Any:
    modules = [x for x in function.__globals__.values() if inspect.ismodule(x) and x in (tl, tl.core)]
    if all(module in _patched for module in modules):
        return interpreter._LangPatchScope()
    scope = _patch(function)
    if not _patched:  # the launch itself, whose end takes all back
        restore = scope.restore

        def end() -> None:
            _patched.clear()
            restore()

        scope.restore = end
    _patched.update(modules)
    return scope
