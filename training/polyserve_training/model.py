"""The decoder that is trained: the one that serves, made new from a recipe or loaded from a folder.

config.json   a new model gets one in Hugging Face's words, and is read from it as any checkpoint is: what trains is, by
              construction, what `transformers` and the server will read
weights       N(0, init_std); products into the residual stream N(0, init_std / sqrt(2 L)), so that its variance does
              not grow with the L layers (GPT-2); biases 0, norms 1. Each parameter is drawn by its own name's seed
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
from polyserve_training.parallel import ALONE, Processes, keep_gradients_whole, local, placement_of, shard
from polyserve_training.tensor_parallel import connect, share_of

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
        hf_config = json.loads(path.read_text(encoding="utf-8")) | _generation(path.parent)
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


def _generation(folder: Path) -> dict[str, Any]:
    """Which tokens end an answer, where a folder says it beside its config.json, as a server would see it."""
    path = folder / "generation_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {"eos_token_id": values["eos_token_id"]} if values.get("eos_token_id") is not None else {}


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


def build(recipe: Recipe, described: Described, device: torch.device, processes: Processes = ALONE) -> Decoder:
    """The model with its first weights, ready to be trained; of a divided one, this process's part."""
    dtype = torch.bfloat16 if recipe.compute.dtype == "bfloat16" else torch.float32
    divided = processes.shard or processes.tensor > 1
    if recipe.model.path is None:
        whole = Decoder(described.config, dtype=dtype)
    else:
        whole = load_model(resolve(recipe.model.path), dtype=dtype, device=torch.device("cpu") if divided else device)
    first_weight = partial(_first_weight, whole, std=recipe.model.init_std or _DEFAULT_STD, seed=recipe.seed)
    if divided:
        model = _part_of(whole, first_weight, device, processes)
    else:
        for name, parameter in list(whole.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            if parameter.is_meta:
                setattr(whole.get_submodule(owner), leaf, nn.Parameter(first_weight(name).to(device)))
        model = whole.to(device)
    make_trainable(model)
    if processes.tensor > 1:
        assert processes.mesh is not None
        connect(model, processes.mesh["tensor"])
    if recipe.compute.recompute:
        recompute_layers(model)
    return model


def _part_of(
    whole: Decoder, first_weight: Callable[[str], Tensor], device: torch.device, processes: Processes
) -> Decoder:
    """This process's part of a model. Nothing of the rest gets memory but one parameter at a time."""
    model = Decoder(share_of(whole.config, processes.tensor), dtype=whole.dtype)
    if processes.shard:
        shard(model, processes)
    buffers = [(owner, *buffer) for owner in model.modules() for buffer in owner.named_buffers(recurse=False)]
    model.to_empty(device=device)
    for owner, name, values in buffers:
        setattr(owner, name, values.to(device))
    for name, parameter in model.named_parameters():
        values = placement_of(name, parameter, model, processes).of(first_weight(name).detach())
        local(parameter.detach()).copy_(values)
    return model


def make_trainable(model: Decoder) -> None:
    """Ask for gradients, which are summed up in fp32 over the parts of a step."""
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad_dtype = torch.float32
    keep_gradients_whole(model)


def recompute_layers(model: Decoder) -> None:
    """Let each layer keep its inputs alone, and compute again for its gradients: the same bits with less memory."""
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _first_weight(whole: Decoder, name: str, *, std: float, seed: int) -> Tensor:
    """What a parameter begins with: what was loaded for it, else numbers of its own."""
    parameter = whole.get_parameter(name)
    if not parameter.is_meta:
        return parameter
    if parameter.dim() == 1:
        is_norm = "norm" in name.rpartition(".")[0] and name.endswith("weight")
        return torch.full(parameter.shape, 1.0 if is_norm else 0.0, dtype=parameter.dtype)
    into_residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
    spread = std / math.sqrt(2 * whole.config.num_layers) if into_residual else std
    return torch.empty(parameter.shape).normal_(0.0, spread, generator=generator(seed, name)).to(parameter.dtype)


def generator(seed: int, name: str, *, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers of its own for everything that has a name."""
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") % 2**63)


def flops_per_token(config: ModelConfig, *, context: int) -> float:
    """Forward and backward, as is customary: 6 for each weight of a product, the head's too, and causal attention."""
    attention = config.num_heads * config.head_size * context  # 2 products, of half the context each
    return 6.0 * (config.num_layers * (config.layer_weights + attention) + config.vocab_size * config.hidden_size)
