"""Write a `transformers` model as a GGUF file the way llama.cpp's converter does, tokenizer inside.

What the converter changes
    Llama      rows of q and k are interleaved, since its rotary turns neighbouring elements
    Gemma 3    1 is added to every norm weight
    GPT-2      matrices become [out, in]
    BLOOM      fused rows become q | k | v
Names come from `gguf.get_tensor_name_map`, so that nothing of PolyServe's own tables is used to check them.
Source   https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

import json
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from transformers import PreTrainedModel

from support.tiny_tokenizers import SENTENCEPIECE_FAMILIES, byte_level_bpe, sentencepiece_model

ARCHITECTURES = {"llama": "LLAMA", "gemma3": "GEMMA3", "gpt2": "GPT2", "polylm": "GPT2", "bloom": "BLOOM"}
Arrays = dict[str, np.ndarray]


def write_gguf(model: PreTrainedModel, path: Path, *, family: str, block_type: str) -> Path:
    """Write matrices in `block_type` ("F32", "F16", "BF16", "Q8_0", "Q4_0", ...), everything one-dimensional in F32."""
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[family]]
    names = gguf.get_tensor_name_map(architecture, 64)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _write_metadata(writer, model.config.to_dict(), family)
    _write_tokenizer(writer, family, vocab_size=model.config.vocab_size)
    for name, array in _converted(model, family).items():
        known = name.removeprefix("transformer.") if family == "bloom" else name
        gguf_name = names.get_name(known, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None, name
        kind = gguf.GGMLQuantizationType[block_type if array.ndim > 1 else "F32"]
        writer.add_tensor(gguf_name, gguf.quants.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
    factors = _rope_factors(model)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def round_to_blocks(model: PreTrainedModel, *, block_type: str) -> PreTrainedModel:
    """Replace, in place, every matrix by what `block_type` keeps of it: the reference for a file in that type.

    Rows are quantised along the dimension that GGUF stores innermost: the inputs of a product.
    """
    kind = gguf.GGMLQuantizationType[block_type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue
            transposed = _is_conv1d(name)
            array = (parameter.t() if transposed else parameter).float().numpy()
            rounded = torch.from_numpy(
                gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(array), kind), kind)
            )
            parameter.copy_(rounded.t() if transposed else rounded)
    return model


def _is_conv1d(name: str) -> bool:
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _converted(model: PreTrainedModel, family: str) -> Arrays:
    """The model's tensors under their own names, changed as the converter changes them."""
    config = model.config
    arrays: Arrays = {}
    for name, parameter in model.named_parameters():
        array = parameter.detach().float().numpy()
        if family == "llama" and ".q_proj." in name:
            array = _interleave_rows(array, config.num_attention_heads)
        elif family == "llama" and ".k_proj." in name:
            array = _interleave_rows(array, config.num_key_value_heads)
        elif family == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        elif _is_conv1d(name):
            array = array.T
        elif ".query_key_value." in name:
            head_size = config.hidden_size // config.n_head
            array = array.reshape(config.n_head, 3, head_size, -1).swapaxes(0, 1).reshape(array.shape)
        arrays[name] = array
    return arrays


def _interleave_rows(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows (i, i + D / 2) of each head become neighbours."""
    half = array.shape[0] // num_heads // 2
    return array.reshape(num_heads, 2, half, -1).swapaxes(1, 2).reshape(array.shape)


def _rope_factors(model: PreTrainedModel) -> np.ndarray | None:
    """Llama 3's scaling as the converter stores it: how much each frequency is divided."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return None
    size = model.config.head_dim
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / model.model.rotary_emb.inv_freq.double()).float().numpy()


def _write_metadata(writer: gguf.GGUFWriter, config: dict, family: str) -> None:
    writer.add_context_length(config.get("max_position_embeddings") or config.get("n_positions") or 2048)
    writer.add_embedding_length(config.get("hidden_size") or config["n_embd"])
    writer.add_block_count(config.get("num_hidden_layers") or config["n_layer"])
    writer.add_head_count(config.get("num_attention_heads") or config["n_head"])
    writer.add_vocab_size(config["vocab_size"])
    if family in ("llama", "gemma3"):
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    else:
        writer.add_feed_forward_length(config.get("n_inner") or 4 * (config.get("n_embd") or config["hidden_size"]))
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    if family == "llama":
        writer.add_rope_dimension_count(config["head_dim"])
        _write_rope(writer, config["rope_parameters"])
    if family == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
        sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
        if sliding != [bool((layer + 1) % 6) for layer in range(len(sliding))]:  # else llama.cpp knows it
            writer.add_sliding_window_pattern(sliding)
        _write_rope(writer, config["rope_parameters"]["full_attention"])
        if config["final_logit_softcapping"]:
            writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _write_rope(writer: gguf.GGUFWriter, rope: dict) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _write_tokenizer(writer: gguf.GGUFWriter, family: str, *, vocab_size: int) -> None:
    """Embed the tiny tokenizer, padded to the vocabulary as the converter pads."""
    kinds = gguf.TokenType
    if family in SENTENCEPIECE_FAMILIES:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(family, vocab_size=vocab_size))
        tokens = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]
        scores = [pieces.get_score(i) for i in range(len(tokens))]
        types = [_sentencepiece_type(pieces, i) for i in range(len(tokens))]
        padding = vocab_size - len(tokens)
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores + [-1000.0] * padding)
        special = (pieces.bos_id(), pieces.eos_id(), pieces.unk_id())
    else:
        tokenizer = json.loads(byte_level_bpe(vocab_size=vocab_size).to_str())["model"]
        tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
        types = [kinds.CONTROL if i < 3 else kinds.NORMAL for i in range(len(tokens))]
        padding = vocab_size - len(tokens)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
        special = (1, 2, 0)
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in range(padding)])
    writer.add_token_types([*types, *[kinds.UNUSED] * padding])
    writer.add_bos_token_id(special[0])
    writer.add_eos_token_id(special[1])
    writer.add_unk_token_id(special[2])
    writer.add_add_bos_token(family == "gemma3")
    writer.add_add_space_prefix(family == "polylm")


def _sentencepiece_type(pieces: sentencepiece.SentencePieceProcessor, token_id: int) -> gguf.TokenType:
    if pieces.is_unknown(token_id):
        return gguf.TokenType.UNKNOWN
    if pieces.is_control(token_id):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if pieces.is_byte(token_id) else gguf.TokenType.NORMAL
