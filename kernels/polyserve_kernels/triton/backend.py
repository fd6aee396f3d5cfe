"""The operations of this backend by name; `polyserve_kernels.backend.Backend` is what is asked of it."""

from polyserve_kernels.reference.backend import *  # noqa: F403  (until each has its kernel)
