"""A small random decoder in memory, for tests of what surrounds a model: no checkpoint, no tokenizer, no other library.

Llama's shape: 2 layers, 4 query heads that share 2 key/value heads of size 16, rotary positions, 300 tokens of
vocabulary. Its logits have a standard deviation of about 2, so answers vary with everything they should depend on.
"""

import torch
from torch import nn

from polyserve.model.config import ModelConfig
from polyserve.model.decoder import Decoder

VOCAB_SIZE = 300
MAX_LEN = 256
EOS = 2


def tiny_config(
    *, vocab_size: int = VOCAB_SIZE, max_len: int = MAX_LEN, final_soft_cap: float | None = None
) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=16,
        mlp_size=96,
        max_len=max_len,
        eos_ids=(EOS,),
        bos_id=1,
        rotary_size=16,
        rope_bases=(10_000.0,) * 2,
        rope_scalings=(None,) * 2,
        norm="rms",
        mlp="gated_silu",
        final_soft_cap=final_soft_cap,
        tied_head=False,
    )


def tiny_decoder(dtype: torch.dtype = torch.float32, *, seed: int = 0, config: ModelConfig | None = None) -> Decoder:
    model = Decoder(config or tiny_config(), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        spread = 2.0 if name.endswith("embedding.weight") else 2.0 * parameter.shape[-1] ** -0.5
        values = 1.0 + 0.1 * noise if noise.ndim == 1 else spread * noise
        module, _, attribute = name.rpartition(".")
        filled = nn.Parameter(values.to(parameter.dtype), requires_grad=False)
        setattr(model.get_submodule(module), attribute, filled)
    return model.eval()
