"""The configurations that are shipped: calls of operations at the sizes of real models, as models and engine make them.

The report compiles them, and its rules hold for them. One list a kind of operation; `call.py` says what an entry is.
T rows   Hq, Hkv heads of size D   C channels   F width of the MLP   V vocabulary
"""

from polyserve_kernels.dispatch import triton_to_compile
from polyserve_kernels.triton.shipped import attention, dense, elementwise
from polyserve_kernels.triton.shipped.call import Shipped


def shipped() -> list[Shipped]:
    """Every configuration, operation by operation."""
    with triton_to_compile():  # whose tiles of the vocabulary give a shape
        return [*attention.calls(), *dense.calls(), *elementwise.calls()]
