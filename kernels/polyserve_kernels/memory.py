"""Memory on a CPU for what is large: weights, keys and values, the gradient of a vocabulary.

The system gives it page by page, zeroed, as it is first written, and in large pages where it has them: reading it needs
fewer translations of addresses then, and filling it fewer faults.
"""

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As torch.zeros, from the beginning of a page on."""
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    if not hasattr(mmap, "MADV_HUGEPAGE") or num_bytes == 0:
        return torch.zeros(shape, dtype=dtype)
    # Memory that could be shared, as Python would map it, has small pages alone. This lives as long as the tensor.
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(tuple(shape))
