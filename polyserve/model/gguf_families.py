"""From the metadata of a GGUF file to a ModelConfig: one function an architecture.

Keys are those of `gguf.constants.Keys`, without their architecture in front ("llama.block_count" is "block_count"
here). A key of the architecture that is not known is refused: it may change the mathematics. What llama.cpp knows
without metadata stands here too: Gemma 3's pattern of sliding layers, their rotary base, and the attention scale of its
largest model.
Source   https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp, load_hparams
"""

from collections.abc import Callable

import numpy as np

from polyserve.errors import ModelLoadError
from polyserve.gguf import GGUFFile
from polyserve.model.config import ModelConfig, RopeScaling
from polyserve.model.fields import MAX_LAYERS, Fields
from polyserve.model.hf_families import GEMMA3_SLIDING_PATTERN, POLYLM_EOS_ID, POLYLM_VOCAB_SIZE, sliding_layers
from polyserve.model.rope import stretched_len, yarn_magnitude

GEMMA3_27B_LAYERS = 62  # the one Gemma 3 whose attention scale is not head_size ** -0.5
GEMMA3_LOCAL_BASE = 10_000.0

_COMMON_KEYS = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "tensor_data_layout"),
    *("attention.head_count", "attention.head_count_kv"),
}
_LAYER_NORM_KEYS = _COMMON_KEYS | {"attention.layer_norm_epsilon"}
_ROTARY_KEYS = {
    *_COMMON_KEYS,
    *("attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.finetuned"),
}
_GEMMA3_KEYS = {
    *_ROTARY_KEYS,
    *("attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
}
_KEYS: dict[str, set[str]] = {
    "gpt2": _LAYER_NORM_KEYS,
    "bloom": _LAYER_NORM_KEYS,
    "llama": _ROTARY_KEYS | {"expert_count", "expert_used_count"},
    "gemma3": _GEMMA3_KEYS,
}


def config_from_gguf(file: GGUFFile) -> ModelConfig:
    """The config of the model in a GGUF file. Raises ModelLoadError."""
    architecture = file.metadata.get("general.architecture")
    family = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        supported = ", ".join(ARCHITECTURES)
        raise ModelLoadError(f"{file.path}: architecture {architecture!r} is not supported; supported: {supported}")
    prefix = f"{architecture}."
    fields = Fields(
        {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)},
        str(file.path),
    )
    for name in fields.values:
        if name not in _KEYS[str(architecture)]:
            fields.fail(f"metadata {prefix}{name} is not supported")
    try:
        return family(fields, file)
    except ValueError as error:
        raise ModelLoadError(f"{file.path}: {error}") from error


def _gpt2(fields: Fields, file: GGUFFile) -> ModelConfig:
    polylm = _vocab_size(file) == POLYLM_VOCAB_SIZE
    return _layer_norm_family(
        fields,
        file,
        family="polylm" if polylm else "gpt2",
        eos_ids=(POLYLM_EOS_ID,) if polylm else _eos_ids(file),
        bos_id=None if polylm else _bos_id(file),
    )


def _bloom(fields: Fields, file: GGUFFile) -> ModelConfig:
    return _layer_norm_family(fields, file, family="bloom", eos_ids=_eos_ids(file), bos_id=_bos_id(file))


def _layer_norm_family(
    fields: Fields, file: GGUFFile, *, family: str, eos_ids: tuple[int, ...], bos_id: int | None
) -> ModelConfig:
    """GPT-2, PolyLM or BLOOM: biases everywhere, heads that share nothing."""
    hidden_size, num_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    if hidden_size % num_heads:
        fields.fail(f"embedding_length {hidden_size} is no multiple of {num_heads} heads")
    fields.refuse("attention.head_count_kv", unless=num_heads)
    return ModelConfig(
        family=family,
        vocab_size=_vocab_size(file),
        hidden_size=hidden_size,
        num_layers=fields.integer("block_count", at_most=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_size=hidden_size // num_heads,
        mlp_size=fields.integer("feed_forward_length"),
        max_len=fields.integer("context_length"),
        eos_ids=eos_ids,
        bos_id=bos_id,
        learned_positions=family != "bloom",
        alibi_scale=1.0 if family == "bloom" else 0.0,
        embedding_norm=family == "bloom",
        norm_eps=fields.number("attention.layer_norm_epsilon"),
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tied_head="output.weight" not in file.tensors,
    )


def _llama(fields: Fields, file: GGUFFile) -> ModelConfig:
    for name in ("expert_count", "expert_used_count"):
        fields.refuse(name, unless=0)
    num_layers, num_heads = fields.integer("block_count", at_most=MAX_LAYERS), fields.integer("attention.head_count")
    max_len, head_size = fields.integer("context_length"), _head_size(fields)
    scaling = _rope_factors(file, head_size=head_size) or _rope_scaling(fields, max_len=max_len)
    attention_bias, mlp_bias = "blk.0.attn_q.bias" in file.tensors, "blk.0.ffn_up.bias" in file.tensors
    return ModelConfig(
        family="llama",
        vocab_size=_vocab_size(file),
        hidden_size=fields.integer("embedding_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
        head_size=head_size,
        mlp_size=fields.integer("feed_forward_length"),
        max_len=stretched_len(scaling, max_len=max_len),
        eos_ids=_eos_ids(file),
        bos_id=_bos_id(file),
        rotary_size=head_size,
        rope_bases=(fields.number("rope.freq_base", 10_000.0),) * num_layers,
        rope_scalings=(scaling,) * num_layers,
        norm="rms",
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        mlp="gated_silu",
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_bias=mlp_bias,
        tied_head="output.weight" not in file.tensors,
    )


def _gemma3(fields: Fields, file: GGUFFile) -> ModelConfig:
    num_layers, num_heads = fields.integer("block_count", at_most=MAX_LAYERS), fields.integer("attention.head_count")
    hidden_size, head_size = fields.integer("embedding_length"), _head_size(fields)
    max_len, window = fields.integer("context_length"), fields.integer("attention.sliding_window")
    sliding = _sliding_layers(fields, num_layers=num_layers)
    base, scaling = fields.number("rope.freq_base", 1e6), _rope_scaling(fields, max_len=max_len)
    local_base = fields.number("rope.freq_base_swa", GEMMA3_LOCAL_BASE)
    query_scalar = hidden_size / num_heads if num_layers == GEMMA3_27B_LAYERS else head_size
    return ModelConfig(
        family="gemma3",
        vocab_size=_vocab_size(file),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("attention.head_count_kv"),
        head_size=head_size,
        mlp_size=fields.integer("feed_forward_length"),
        max_len=max_len,
        eos_ids=_eos_ids(file),
        bos_id=_bos_id(file),
        rotary_size=head_size,
        rope_bases=tuple(local_base if local else base for local in sliding),
        rope_scalings=tuple(None if local else scaling for local in sliding),
        norm="rms",
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        norm_placement="sandwich",
        embedding_scale=hidden_size**0.5,
        mlp="gated_gelu",
        qk_norm=True,
        attention_scale=query_scalar**-0.5,
        windows=tuple(window if local else None for local in sliding),
        attention_soft_cap=fields.optional_number("attn_logit_softcapping"),
        final_soft_cap=fields.optional_number("final_logit_softcapping"),
        tied_head="output.weight" not in file.tensors,
    )


def _sliding_layers(fields: Fields, *, num_layers: int) -> list[bool]:
    """From a truth value a layer, from every how many layers one sees everything, or from what is known of Gemma 3."""
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray) and pattern.shape == (num_layers,):
        return [bool(local) for local in pattern]
    return sliding_layers(
        num_layers, pattern=fields.integer("attention.sliding_window_pattern", GEMMA3_SLIDING_PATTERN)
    )


def _head_size(fields: Fields) -> int:
    """One size for queries, keys, values and rotation."""
    hidden_size, num_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    if not fields.has("attention.key_length") and hidden_size % num_heads:
        fields.fail(f"embedding_length {hidden_size} is no multiple of {num_heads} heads")
    head_size = fields.integer("attention.key_length", hidden_size // num_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        fields.refuse(name, unless=head_size)
    return head_size


def _rope_scaling(fields: Fields, *, max_len: int) -> RopeScaling | None:
    kind = fields.text("rope.scaling.type", "none")
    if kind != "yarn":
        fields.refuse("rope.scaling.attn_factor", unless=1.0)
    if kind == "none":
        return None
    factor = fields.number("rope.scaling.factor")
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind != "yarn":
        fields.fail(f"rope.scaling.type {kind!r} is not supported; supported: none, linear, yarn")
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_len=fields.integer("rope.scaling.original_context_length", max_len),
        attention_factor=fields.number("rope.scaling.attn_factor", 1.0) * yarn_magnitude(factor),
    )


def _rope_factors(file: GGUFFile, *, head_size: int) -> RopeScaling | None:
    """Llama 3.1's scaling, which the converter stores as a tensor of divisors, one a frequency."""
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is None:
        return None
    wanted = (head_size // 2,)
    if tensor.type.name != "F32" or tensor.shape != wanted:
        came = f"{tensor.type.name} of shape {tensor.shape}"
        raise ModelLoadError(f"{file.path}: rope_freqs.weight must be F32 of shape {wanted}, got {came}")
    factors = tuple(float(factor) for factor in tensor.data.view("<f4"))
    if not all(0 < factor < float("inf") for factor in factors):
        raise ModelLoadError(f"{file.path}: rope_freqs.weight must hold finite numbers above 0")
    return RopeScaling(kind="factors", factors=factors)


def _vocab_size(file: GGUFFile) -> int:
    """Rows of the word embedding: files do not always state it."""
    words = file.tensors.get("token_embd.weight")
    if words is None:
        raise ModelLoadError(f"{file.path}: tensor token_embd.weight is missing")
    return words.shape[0]


def _eos_ids(file: GGUFFile) -> tuple[int, ...]:
    """Ids that end an answer: end of sequence, and a chat model's end of turn and of message."""
    fields = Fields(file.metadata, str(file.path))
    names = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
    return tuple(
        dict.fromkeys(token_id for name in names for token_id in fields.ids(name, vocab_size=_vocab_size(file)))
    )


def _bos_id(file: GGUFFile) -> int | None:
    ids = Fields(file.metadata, str(file.path)).ids("tokenizer.ggml.bos_token_id", vocab_size=_vocab_size(file))
    return ids[0] if ids else None


ARCHITECTURES: dict[str, Callable[[Fields, GGUFFile], ModelConfig]] = {
    "gpt2": _gpt2,
    "bloom": _bloom,
    "llama": _llama,
    "gemma3": _gemma3,
}
