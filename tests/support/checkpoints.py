"""Tiny random checkpoints of every family in every format, with a tiny real tokenizer beside them.

make_checkpoint(folder, "llama")                    what most tests need: a folder (or .gguf file) and its tokenizer
tiny_model("llama"), save(model, folder, "bin")     in two steps, for tests that also need the reference model
Everything follows from the arguments. Weights are drawn so that every part of the model matters to the logits: norm
weights differ from 1 and biases from 0, and the logits' standard deviation is about 2.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from support.gguf_files import round_to_blocks, write_gguf
from support.tiny_tokenizers import write_tokenizer

Family = Literal["polylm", "gpt2", "bloom", "llama", "gemma3"]
FAMILIES: tuple[Family, ...] = ("polylm", "gpt2", "bloom", "llama", "gemma3")
FOLDER_FORMATS = ("safetensors", "safetensors-sharded", "bin", "bin-sharded")
GGUF_FORMATS = ("gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q4_0", "gguf-q5_1")
SHARD_BYTES = 100_000


@dataclass(frozen=True)
class Sizes:
    """The shape of a tiny model. 6 heads are no power of two: both halves of BLOOM's ALiBi rule are used."""

    vocab_size: int = 512
    hidden_size: int = 96
    num_layers: int = 3
    num_heads: int = 6
    num_kv_heads: int = 2  # Llama and Gemma 3
    head_size: int = 32  # Llama and Gemma 3; the others have hidden_size / num_heads
    mlp_size: int = 160
    max_len: int = 128
    window: int = 8  # Gemma 3; every second layer is a sliding one


SIZES = Sizes()


def make_checkpoint(
    folder: Path,
    family: Family,
    *,
    format: str = "safetensors",
    seed: int = 0,
    sizes: Sizes = SIZES,
    config: dict[str, object] | None = None,
) -> Path:
    """Write a random model of a family; return what PolyServe is given: the folder, or the .gguf file in it.

    format: one of FOLDER_FORMATS or GGUF_FORMATS.  config: fields of the transformers config to set besides the sizes.
    """
    return save(tiny_model(family, seed=seed, sizes=sizes, config=config), folder, format, family=family)


def tiny_model(
    family: Family, *, seed: int = 0, sizes: Sizes = SIZES, config: dict[str, object] | None = None
) -> PreTrainedModel:
    """A `transformers` model in fp32 with random weights, in evaluation mode."""
    model_class, settings = _config_of(family, sizes, config or {})
    model = model_class(settings).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    gemma_norms = family == "gemma3"
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * _spread(name, parameter, sizes))
        elif name.endswith("bias"):
            parameter.copy_(noise * 0.1)
        else:
            parameter.copy_(noise * 0.2 + (0.0 if gemma_norms else 1.0))
    return model


def save(model: PreTrainedModel, folder: Path, format: str = "safetensors", *, family: Family) -> Path:
    """Write a model and its tokenizer. A GGUF format first rounds the model in place to what the file keeps."""
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()
    if format in GGUF_FORMATS:
        block_type = format.removeprefix("gguf-").upper()
        round_to_blocks(model, block_type=block_type)
        return write_gguf(model, folder / "model.gguf", family=family, block_type=block_type)
    if format == "safetensors":
        model.save_pretrained(folder)
    elif format == "safetensors-sharded":
        model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    elif format in ("bin", "bin-sharded"):
        model.config.save_pretrained(folder)
        save_bin(model.state_dict(), folder, sharded=format == "bin-sharded")
    else:
        raise ValueError(f"format must be one of {', '.join(FOLDER_FORMATS + GGUF_FORMATS)}, got {format}")
    if family == "polylm":
        mark_as_polylm(folder)
    write_tokenizer(folder, family, vocab_size=model.config.vocab_size)
    return folder


def save_bin(state: dict[str, torch.Tensor], folder: Path, *, sharded: bool) -> None:
    """Write `pytorch_model.bin`, or shards of about SHARD_BYTES and their index."""
    if not sharded:
        torch.save(state, folder / "pytorch_model.bin")
        return
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in state.items():
        if sum(kept.nbytes for kept in shards[-1].values()) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor.clone()
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"pytorch_model-{number:05}-of-{len(shards):05}.bin"
        torch.save(shard, folder / file_name)
        index |= dict.fromkeys(shard, file_name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def mark_as_polylm(folder: Path) -> None:
    """Give a GPT-2 config the marks of PolyLM's own, old and wrong end-of-sequence id included."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["architectures"] = ["PolyLMHeadModel"]
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_polylm.PolyLMHeadModel"}
    config["bos_token_id"] = config["eos_token_id"] = config["vocab_size"] - 1
    path.write_text(json.dumps(config))


def _config_of(
    family: Family, sizes: Sizes, changes: dict[str, object]
) -> tuple[type[PreTrainedModel], PretrainedConfig]:
    """The model class of a family and its config."""
    if family in ("gpt2", "polylm"):
        gpt2: dict[str, object] = {
            "vocab_size": sizes.vocab_size,
            "n_positions": sizes.max_len,
            "n_embd": sizes.hidden_size,
            "n_layer": sizes.num_layers,
            "n_head": sizes.num_heads,
            "n_inner": sizes.mlp_size,
            "activation_function": "gelu_fast" if family == "polylm" else "gelu_new",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        return GPT2LMHeadModel, GPT2Config(**(gpt2 | changes))
    if family == "bloom":
        bloom: dict[str, object] = {
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden_size,
            "n_layer": sizes.num_layers,
            "n_head": sizes.num_heads,
        }
        return BloomForCausalLM, BloomConfig(**(bloom | changes))
    common: dict[str, object] = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.mlp_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_size,
        "max_position_embeddings": sizes.max_len,
    }
    if family == "llama":
        return LlamaForCausalLM, LlamaConfig(**(common | changes))
    gemma: dict[str, object] = {
        "sliding_window": sizes.window,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(sizes.num_layers)],
        "query_pre_attn_scalar": sizes.head_size,
    }
    return Gemma3ForCausalLM, Gemma3TextConfig(**(common | gemma | changes))


def _spread(name: str, parameter: torch.Tensor, sizes: Sizes) -> float:
    """The standard deviation of a matrix: activations stay near 1, and logits near 2."""
    if any(word in name for word in ("wte", "wpe", "embed", "lm_head")):
        return 2.0 / math.sqrt(sizes.hidden_size)
    num_inputs = parameter.shape[0] if ".c_" in name else parameter.shape[1]
    return 1.0 / math.sqrt(num_inputs)
