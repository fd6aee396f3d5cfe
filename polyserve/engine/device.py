"""Where an engine computes: the device and the kernels that a config names, and a GPU's memory for the KV cache."""

import torch

from polyserve.config import EngineConfig
from polyserve.errors import ModelLoadError
from polyserve.model.config import ModelConfig
from polyserve.model.weights.fill import Packing
from polyserve_kernels import dispatch, ops

FLASH_BLOCK_MULTIPLE = 256  # flash-attn's own
_FIXED_BYTES = 2**28  # partial products, the allocator's rounding, and what CUDA graphs keep


def choose_device(config: EngineConfig) -> torch.device:
    """The device of `config`, with the kernels that are to answer there. Raises ModelLoadError if it is missing."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ModelLoadError("device is cuda, but torch finds no GPU here")
    device = torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")
    if device.type == "cpu" and config.fast_matmul:
        raise ModelLoadError("fast_matmul multiplies with cuBLAS: it needs a GPU, and the device is cpu")
    backend = config.backend
    if backend == "triton+flash" and config.block_size % FLASH_BLOCK_MULTIPLE:
        raise ModelLoadError(
            f"backend triton+flash takes block_size in multiples of {FLASH_BLOCK_MULTIPLE}, got {config.block_size}"
        )
    if config.fast_matmul:
        backend = f"{backend or 'triton'}+cublas"
    try:
        dispatch.use_backend(backend)
        dispatch.backend(device)
    except ValueError as error:
        raise ModelLoadError(str(error)) from error
    return device


def choose_packing(config: EngineConfig, device: torch.device) -> Packing | None:
    """How matrices are packed; None where the kernels multiply tensors."""
    return Packing(keep_integers=config.quantization == "auto") if ops.packs_weights(device) else None


def cache_memory(config: EngineConfig, device: torch.device, *, workspace_bytes: int) -> int | None:
    """Bytes for the KV cache on `device`, which has the weights already; None: the CPU's default.

    workspace_bytes: what a step needs beside weights and cache.
    """
    if config.kv_cache_memory_bytes is not None or device.type == "cpu":
        return config.kv_cache_memory_bytes
    free, total = torch.cuda.mem_get_info(device)
    left = int(total * config.gpu_memory_utilization) - (total - free) - workspace_bytes
    if left <= 0:
        used, share = (total - free) >> 20, f"{config.gpu_memory_utilization:.0%}"
        raise ModelLoadError(
            f"the weights leave no memory for the KV cache: {share} of {total >> 20} MiB may be used, {used} MiB are, "
            f"and a step needs {workspace_bytes >> 20} MiB more"
        )
    return left


def step_bytes(config: ModelConfig, *, num_tokens: int, num_rows: int) -> int:
    """Memory of the largest tensors that are alive at once in a step of `num_tokens` that samples `num_rows`."""
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_size
    layer = 4 * 3 * config.hidden_size + 2 * (
        2 * heads + 3 * config.mlp_size
    )  # residual stream, and what products give
    return num_tokens * layer + num_rows * config.vocab_size + _FIXED_BYTES
