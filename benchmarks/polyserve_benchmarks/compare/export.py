"""The forms of a GGUF file that are made for engines which do not read it, or at another precision.

bf16 folder   through PolyServe's own loader and name tables, backwards: what it serves is what the others get
16-bit GGUF   every matrix in bf16 or fp16; vectors stay in float32, as llama.cpp wants them
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gguf import GGUFReader, GGUFValueType, GGUFWriter, Keys, LlamaFileType
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from polyserve.errors import ModelLoadError

if TYPE_CHECKING:
    from torch import Tensor

    from polyserve.model.config import ModelConfig
    from polyserve.model.weights.names import Place


def bf16_folder(path: Path, folder: Path) -> None:
    """Write a Llama or Gemma 3 of a GGUF file as a Hugging Face folder. Raises ModelLoadError for other families."""
    import torch
    from safetensors.torch import save_file

    from polyserve.model.weights.load import load_model
    from polyserve.model.weights.names import TABLES

    model = load_model(path, dtype=torch.bfloat16)
    config, table = model.config, TABLES[model.config.family]
    fields = hugging_face_config(config)
    parameters = dict(model.named_parameters())
    tensors = {}
    for pattern, pattern_place in table.places.items():
        for layer in range(config.num_layers if "#" in pattern else 1):
            place = pattern_place.in_layer(layer)
            if place.parameter in parameters:
                name = pattern.replace("#", str(layer))
                full_name = name if name == table.head else table.prefixes[0] + name
                tensors[full_name] = _part(parameters[place.parameter], place, config).to(torch.bfloat16).clone()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _part(parameter: "Tensor", place: "Place", config: "ModelConfig") -> "Tensor":
    """The rows that one tensor of the checkpoint fills."""
    q, kv = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    spans = {"q": (0, q), "k": (q, kv), "v": (q + kv, kv), "gate": (0, config.mlp_size)}
    spans |= {"up": (config.mlp_size, config.mlp_size), "": (0, len(parameter))}
    first, count = spans[place.part]
    rows = parameter.detach()[first : first + count]
    return rows - 1 if place.plus_one else rows


def hugging_face_config(config: "ModelConfig") -> dict[str, object]:
    """`config.json` of a Llama or a Gemma 3. Raises ModelLoadError for what it has no field for here."""
    if config.family not in ("llama", "gemma3") or any(config.rope_scalings):
        raise ModelLoadError(
            f"a bf16 folder is made of Llama and Gemma 3 without rotary scaling, not of {config.family}"
        )
    fields: dict[str, object] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_ids),
        "dtype": "bfloat16",
    }
    if config.family == "llama":
        rope = {"rope_type": "default", "rope_theta": config.rope_bases[0]}
        names = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        return names | fields | {"hidden_act": "silu", "mlp_bias": config.mlp_bias, "rope_parameters": rope}
    kinds = ["full_attention" if window is None else "sliding_attention" for window in config.windows]
    ropes = {
        kind: {"rope_type": "default", "rope_theta": base} for kind, base in zip(kinds, config.rope_bases, strict=True)
    }
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **fields,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "sliding_window": max(window or 0 for window in config.windows),
        "layer_types": kinds,
        "rope_parameters": ropes,
    }


def gguf_of_16_bits(path: Path, target: Path, kind: Literal["BF16", "F16"]) -> None:
    """Write the same file with its matrices in bf16 or fp16."""
    block = GGMLQuantizationType[kind]
    reader = GGUFReader(path)
    writer = GGUFWriter(target, arch=reader.fields[Keys.General.ARCHITECTURE].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (Keys.General.ARCHITECTURE, Keys.General.FILE_TYPE):
            continue
        element = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=element)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"])
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values, block), raw_dtype=block)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
