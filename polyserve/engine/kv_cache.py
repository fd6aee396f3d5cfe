"""The memory of keys and values: for each layer two tensors [num_blocks, block_size, Hkv, D] in the model's dtype.

The memory comes zeroed from the operating system page by page as it is first written, so blocks that were never used
cost nothing, and it begins at a page, so kernels find it aligned.
"""

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from polyserve.model.config import ModelConfig
from polyserve_kernels.types import BlockCache

DEFAULT_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class KVCache:
    layers: list[BlockCache]

    @property
    def num_blocks(self) -> int:
        return self.layers[0].k.shape[0]

    @property
    def block_size(self) -> int:
        return self.layers[0].k.shape[1]


def bytes_per_block(config: ModelConfig, *, block_size: int, dtype: torch.dtype) -> int:
    """Keys and values of one block in all layers."""
    return 2 * config.num_layers * block_size * config.num_kv_heads * config.head_size * dtype.itemsize


def num_blocks_for(
    memory_bytes: int | None, *, block_bytes: int, block_size: int, max_model_len: int, max_num_seqs: int
) -> int:
    """How many blocks to have: as many as the memory holds, but no more than could ever be in use at once.

    Without a figure for the memory it is 1 GiB, or what one longest sequence needs if that is more.
    """
    longest = -(-max_model_len // block_size)
    if memory_bytes is None:
        memory_bytes = max(DEFAULT_BYTES, longest * block_bytes)
    return min(memory_bytes // block_bytes, longest * max_num_seqs)


def allocate(config: ModelConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype) -> KVCache:
    shape = (config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_size)
    keys, values = _lazy_zeros(shape, dtype), _lazy_zeros(shape, dtype)
    return KVCache([BlockCache(*layer) for layer in zip(keys, values, strict=True)])


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    memory = mmap.mmap(-1, torch.Size(shape).numel() * dtype.itemsize)  # lives as long as the tensor
    return torch.frombuffer(memory, dtype=dtype).view(shape)
