"""The models whose sizes the shipped calls have, and tensors of such sizes without contents."""

from dataclasses import dataclass

import torch
from torch import Tensor

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DECODE_ROWS = 32
PREFILL_ROWS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The sizes of a model that is served."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocab: int
    norm: str = "layer"  # or "rms"
    activation: str = "gelu"  # or "silu" or "gelu gated"
    rotary: bool = False
    alibi: bool = False
    window: int | None = None


POLYLM_1B7 = Model(name="PolyLM-1.7B", hidden=2048, heads=16, kv_heads=16, head_size=128, mlp=8192, vocab=256_000)
POLYLM_13B = Model(name="PolyLM-13B", hidden=5120, heads=40, kv_heads=40, head_size=128, mlp=20480, vocab=256_000)
GPT2 = Model(name="GPT-2", hidden=768, heads=12, kv_heads=12, head_size=64, mlp=3072, vocab=50257)
BLOOM_1B1 = Model(
    name="BLOOM-1.1B", hidden=1536, heads=16, kv_heads=16, head_size=96, mlp=6144, vocab=250_880, alibi=True
)
BLOOM_3B = Model(
    name="BLOOM-3B", hidden=2560, heads=32, kv_heads=32, head_size=80, mlp=10240, vocab=250_880, alibi=True
)
SMOLLM2 = Model(
    name="SmolLM2-135M", hidden=576, heads=9, kv_heads=3, head_size=64, mlp=1536, vocab=49_152,
    norm="rms", activation="silu", rotary=True,
)  # fmt: skip
LLAMA_8B = Model(
    name="Llama-3.1-8B", hidden=4096, heads=32, kv_heads=8, head_size=128, mlp=14_336, vocab=128_256,
    norm="rms", activation="silu", rotary=True,
)  # fmt: skip
GEMMA3 = Model(
    name="Gemma-3-1B", hidden=1152, heads=4, kv_heads=1, head_size=256, mlp=6912, vocab=262_144,
    norm="rms", activation="gelu gated", rotary=True, window=512,
)  # fmt: skip
MODELS = (POLYLM_1B7, POLYLM_13B, GPT2, BLOOM_1B1, BLOOM_3B, SMOLLM2, LLAMA_8B, GEMMA3)


def tensor(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
