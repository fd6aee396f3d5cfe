"""The decoder that is trained: the one that serves, made new from a recipe or loaded from a folder.

config.json   a new model gets one in Hugging Face's words, and is read from it as any checkpoint is: what trains is, by
              construction, what `transformers` and the server will read
weights       N(0, init_std); products into the residual stream N(0, init_std / sqrt(2 L)), so that its variance does
              not grow with the L layers (GPT-2); biases 0, norms 1. Each parameter is drawn by its own name's seed
"""

import json
import math
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from polyserve.errors import ModelLoadError, TrainingError
from polyserve.model.config import ModelConfig
from polyserve.model.decoder import Decoder
from polyserve.model.fields import Fields
from polyserve.model.hf_families import FAMILIES
from polyserve.model.weights.load import load_model
from polyserve.model.weights.resolve import resolve
from polyserve.tokenizer.base import Tokenizer
from polyserve_training.config import ModelRecipe, Recipe

_DEFAULT_STD = 0.02


@dataclass(frozen=True, slots=True)
class Described:
    """A model before it has memory."""

    hf_config: dict[str, Any]  # what its config.json says
    config: ModelConfig


def describe(recipe: Recipe, tokenizer: Tokenizer) -> Described:
    """The model of a recipe. Raises TrainingError where it does not fit the tokenizer or the rows."""
    if recipe.model.path is None:
        hf_config = hf_config_of(recipe.model, tokenizer, context=recipe.batch.context)
    else:
        path = resolve(recipe.model.path) / "config.json"
        if not path.is_file():
            raise TrainingError(f"model.path: {recipe.model.path}: only folders with a config.json can be trained")
        hf_config = json.loads(path.read_text(encoding="utf-8"))
    family = FAMILIES.get(str(hf_config.get("model_type")))
    if family is None:
        raise TrainingError(f"model.path: model type {hf_config.get('model_type')!r} is not supported")
    try:
        config = family(Fields(hf_config, "model"), Fields({}, "model"))
    except (ModelLoadError, ValueError) as error:
        raise TrainingError(str(error)) from error
    if tokenizer.vocab_size > config.vocab_size:
        raise TrainingError(
            f"model: its vocabulary of {config.vocab_size} is too small for the tokenizer's {tokenizer.vocab_size} ids"
        )
    if recipe.batch.context > config.max_len:
        raise TrainingError(
            f"batch.context: {recipe.batch.context} is more than the model's {config.max_len} positions"
        )
    return Described(hf_config, config)


def hf_config_of(model: ModelRecipe, tokenizer: Tokenizer, *, context: int) -> dict[str, Any]:
    """A new model's config.json."""
    hidden_size, num_heads = model.hidden_size or 0, model.num_heads or 1
    if hidden_size % num_heads:
        raise TrainingError(f"model: hidden_size {hidden_size} must be a multiple of num_heads {num_heads}")
    mlp_size, max_len = model.mlp_size or 4 * hidden_size, model.max_len or context
    common = {
        "vocab_size": model.vocab_size or tokenizer.vocab_size,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "tie_word_embeddings": True,
    }
    if model.family == "bloom":
        return common | {
            "model_type": "bloom",
            "architectures": ["BloomForCausalLM"],
            "hidden_size": hidden_size,
            "n_layer": model.num_layers,
            "n_head": num_heads,
            "seq_length": max_len,
        }
    if model.family == "llama":
        return common | {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": hidden_size,
            "intermediate_size": mlp_size,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": model.num_kv_heads or num_heads,
            "max_position_embeddings": max_len,
            "rms_norm_eps": 1e-5,
        }
    return common | {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_fast" if model.family == "polylm" else "gelu_new",
        "n_embd": hidden_size,
        "n_layer": model.num_layers,
        "n_head": num_heads,
        "n_inner": mlp_size,
        "n_positions": max_len,
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def build(recipe: Recipe, described: Described, device: torch.device) -> Decoder:
    """The model with its first weights, ready to be trained."""
    dtype = torch.bfloat16 if recipe.compute.dtype == "bfloat16" else torch.float32
    if recipe.model.path is None:
        model = Decoder(described.config, dtype=dtype)
        _initialise(model, std=recipe.model.init_std or _DEFAULT_STD, seed=recipe.seed, device=device)
        model = model.to(device)
    else:
        model = load_model(resolve(recipe.model.path), dtype=dtype, device=device)
    make_trainable(model)
    if recipe.compute.recompute:
        recompute_layers(model)
    return model


def make_trainable(model: Decoder) -> None:
    """Ask for gradients, which are summed up in fp32 over the parts of a step."""
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad_dtype = torch.float32


def recompute_layers(model: Decoder) -> None:
    """Let each layer keep its inputs alone, and compute again for its gradients: the same bits with less memory."""
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _initialise(model: Decoder, *, std: float, seed: int, device: torch.device) -> None:
    into_residual = std / math.sqrt(2 * model.config.num_layers)
    for name, shape in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        if shape.dim() == 1:
            is_norm = "norm" in owner and leaf == "weight"
            values = torch.full(shape.shape, 1.0 if is_norm else 0.0)
        else:
            spread = into_residual if name.endswith(("attention.out.weight", "mlp.down.weight")) else std
            values = torch.empty(shape.shape).normal_(0.0, spread, generator=_generator(seed, name))
        setattr(model.get_submodule(owner), leaf, nn.Parameter(values.to(device, shape.dtype)))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") % 2**63)


def flops_per_token(config: ModelConfig, *, context: int) -> float:
    """Forward and backward, as is customary: 6 for each weight of a product, the head's too, and causal attention."""
    kv = config.num_kv_heads * config.head_size
    q = config.num_heads * config.head_size
    up = 2 if config.gated else 1
    layer = config.hidden_size * (2 * q + 2 * kv + (up + 1) * config.mlp_size)
    attention = q * context  # 2 products of q * context / 2 each
    return 6.0 * (config.num_layers * (layer + attention) + config.vocab_size * config.hidden_size)
