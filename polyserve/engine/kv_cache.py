"""The memory of keys and values: for each layer two tensors [num_blocks, block_size, Hkv, D], and the scales of int8
and fp8 ones.

On a CPU the memory comes zeroed from the operating system page by page as it is first written, so blocks that were
never used cost nothing, and it begins at a page, so kernels find it aligned. On a GPU it is taken at once: what others
would take later could not be served with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polyserve.model.config import ModelConfig
from polyserve_kernels import memory
from polyserve_kernels.types import BlockCache

DEFAULT_BYTES = 2**30
_SCALED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class KVCache:
    layers: list[BlockCache]

    @property
    def num_blocks(self) -> int:
        return self.layers[0].k.shape[0]

    @property
    def block_size(self) -> int:
        return self.layers[0].k.shape[1]

    @property
    def device(self) -> torch.device:
        return self.layers[0].k.device


def cache_dtype(name: str, *, model_dtype: torch.dtype) -> torch.dtype:
    """The dtype that `EngineConfig.kv_cache_dtype` names."""
    if name == "auto":
        return model_dtype
    return _SCALED[name] if name in _SCALED else getattr(torch, name)


def bytes_per_block(config: ModelConfig, *, block_size: int, dtype: torch.dtype) -> int:
    """Keys and values of one block in all layers, and their scales."""
    scale_bytes = torch.float32.itemsize if dtype in _SCALED.values() else 0
    head_bytes = config.head_size * dtype.itemsize + scale_bytes
    return 2 * config.num_layers * block_size * config.num_kv_heads * head_bytes


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


def allocate(
    config: ModelConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device | None = None
) -> KVCache:
    """All zeros.  device: default the CPU."""
    shape = (config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_size)
    device = device or torch.device("cpu")
    parts = [_zeros(shape, dtype, device) for _ in range(2)]
    if dtype in _SCALED.values():
        parts += [_zeros(shape[:-1], torch.float32, device) for _ in range(2)]
    return KVCache([BlockCache(*layer) for layer in zip(*parts, strict=True)])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return memory.zeros(shape, dtype) if device.type == "cpu" else torch.zeros(shape, dtype=dtype, device=device)
