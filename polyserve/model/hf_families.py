"""From a `config.json` to a ModelConfig: one function a family. Code in the model's folder is never run.

Field names and defaults are those of `transformers` (its configuration_*.py). Whatever would change the mathematics and
is not supported is refused by name; fields that matter only to training (dropout, initialisation) or to other software
(`auto_map`) are left alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from polyserve.errors import ModelLoadError
from polyserve.model.config import ModelConfig, RopeScaling
from polyserve.model.fields import MAX_LAYERS, Fields, read_json
from polyserve.model.rope import scaling_of, stretched_len

QUANT_METHOD = "polyserve"  # integers with scales beside them, as `polyserve quantize` writes them
POLYLM_VOCAB_SIZE = 256_000
POLYLM_EOS_ID = 2  # </s>; older configs of the same checkpoints say 255999, which is an ordinary token
BLOOM_MAX_LEN = 2048  # ALiBi sets no limit; this is the trained length
GEMMA3_SLIDING_PATTERN = 6  # every sixth layer sees everything
TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # one function under three names


def config_from_folder(folder: Path) -> ModelConfig:
    """Read `config.json`, and the end-of-sequence ids of `generation_config.json` where there is one."""
    fields = read_json(folder / "config.json")
    family = FAMILIES.get(fields.text("model_type"))
    if family is None:
        fields.fail(f"model type {fields.get('model_type')!r} is not supported; supported: {', '.join(FAMILIES)}")
    quantization = fields.inner("quantization_config")
    if quantization is not None and quantization.get("quant_method") != QUANT_METHOD:
        fields.fail(
            f"quantization_config of {quantization.get('quant_method')!r} is not supported; use the unquantised "
            "checkpoint, one that polyserve quantize wrote, or a GGUF file"
        )
    generation_path = folder / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else Fields({}, str(generation_path))
    try:
        return family(fields, generation)
    except ValueError as error:
        raise ModelLoadError(f"{fields.source}: {error}") from error


def _gpt2(fields: Fields, generation: Fields) -> ModelConfig:
    """GPT-2, and PolyLM, which is GPT-2 with marks of its own. Source: https://arxiv.org/abs/2307.06018, section 3.2"""
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        fields.refuse(name, unless=False)
    _activation(fields, "activation_function", "gelu_new", TANH_GELUS)
    hidden_size, num_heads = fields.integer("n_embd"), fields.integer("n_head")
    vocab_size = fields.integer("vocab_size")
    polylm = _is_polylm(fields, vocab_size)
    return ModelConfig(
        family="polylm" if polylm else "gpt2",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=fields.integer("n_layer", at_most=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_size=_even_share(fields, hidden_size, num_heads),
        mlp_size=fields.integer("n_inner", 4 * hidden_size),
        max_len=fields.integer("n_positions"),
        eos_ids=(POLYLM_EOS_ID,) if polylm else _eos_ids(fields, generation, vocab_size, default=50256),
        bos_id=None if polylm else _bos_id(fields, vocab_size),
        learned_positions=True,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        attention_scale=0.0 if fields.boolean("scale_attn_weights", True) else 1.0,
        tied_head=fields.boolean("tie_word_embeddings", True),
    )


def _is_polylm(fields: Fields, vocab_size: int) -> bool:
    """Whether a config of type gpt2 is PolyLM's: by its vocabulary, or by the class that its checkpoints name."""
    named = [*fields.texts("architectures"), str(fields.get("auto_map"))]
    return vocab_size == POLYLM_VOCAB_SIZE or any("polylm" in name.lower() for name in named)


def _bloom(fields: Fields, generation: Fields) -> ModelConfig:
    """BLOOM, whose configs are spelled in two ways. Source: https://arxiv.org/abs/2211.05100, section 3.2"""
    fields.refuse("apply_residual_connection_post_layernorm", unless=False)
    hidden_size = fields.integer(fields.first("hidden_size", "n_embed"))
    num_heads = fields.integer(fields.first("n_head", "num_attention_heads"))
    vocab_size = fields.integer("vocab_size")
    fields.refuse("n_inner", unless=4 * hidden_size)
    return ModelConfig(
        family="bloom",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=fields.integer(fields.first("n_layer", "num_hidden_layers"), at_most=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_size=_even_share(fields, hidden_size, num_heads),
        mlp_size=4 * hidden_size,
        max_len=fields.integer("seq_length", BLOOM_MAX_LEN),
        eos_ids=_eos_ids(fields, generation, vocab_size, default=2),
        bos_id=_bos_id(fields, vocab_size),
        alibi_scale=1.0,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        embedding_norm=True,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tied_head=fields.boolean("tie_word_embeddings", True),
    )


def _llama(fields: Fields, generation: Fields) -> ModelConfig:
    """Llama 1 to 3. Sources: https://arxiv.org/abs/2302.13971, section 2.2; https://arxiv.org/abs/2407.21783"""
    _activation(fields, "hidden_act", "silu", ("silu", "swish"))
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    vocab_size, num_layers = fields.integer("vocab_size"), fields.integer("num_hidden_layers", at_most=MAX_LAYERS)
    max_len = fields.integer("max_position_embeddings", 2048)
    head_size = fields.integer("head_dim") if fields.has("head_dim") else _even_share(fields, hidden_size, num_heads)
    rope = fields.inner("rope_parameters") or fields.inner("rope_scaling") or Fields({}, fields.source)
    scaling = scaling_of(rope, fields, max_len=max_len)
    attention_bias = fields.boolean("attention_bias", False)
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_size=head_size,
        mlp_size=fields.integer("intermediate_size"),
        max_len=stretched_len(scaling, max_len=max_len),
        eos_ids=_eos_ids(fields, generation, vocab_size, default=2),
        bos_id=_bos_id(fields, vocab_size),
        rotary_size=head_size,
        rope_bases=(rope.number("rope_theta", fields.number("rope_theta", 10_000.0)),) * num_layers,
        rope_scalings=(scaling,) * num_layers,
        norm="rms",
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        mlp="gated_silu",
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_bias=fields.boolean("mlp_bias", False),
        tied_head=fields.boolean("tie_word_embeddings", False),
    )


def _gemma3(fields: Fields, generation: Fields) -> ModelConfig:
    """Gemma 3, text only. Source: https://arxiv.org/abs/2503.19786, section 2"""
    fields.refuse("use_bidirectional_attention", unless=False)
    _activation(fields, "hidden_activation", "gelu_pytorch_tanh", TANH_GELUS)
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    vocab_size, head_size = fields.integer("vocab_size"), fields.integer("head_dim", 256)
    sliding = _sliding_layers(fields, num_layers=fields.integer("num_hidden_layers", at_most=MAX_LAYERS))
    max_len = fields.integer("max_position_embeddings", 131_072)
    (full_base, full_scaling), (local_base, local_scaling) = _gemma3_ropes(fields, max_len=max_len)
    window = fields.integer("sliding_window") if any(sliding) else None
    attention_bias = fields.boolean("attention_bias", False)
    return ModelConfig(
        family="gemma3",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=len(sliding),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads"),
        head_size=head_size,
        mlp_size=fields.integer("intermediate_size"),
        max_len=max_len,
        eos_ids=_eos_ids(fields, generation, vocab_size, default=1),
        bos_id=_bos_id(fields, vocab_size),
        rotary_size=head_size,
        rope_bases=tuple(local_base if local else full_base for local in sliding),
        rope_scalings=tuple(local_scaling if local else full_scaling for local in sliding),
        norm="rms",
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        norm_placement="sandwich",
        embedding_scale=hidden_size**0.5,
        mlp="gated_gelu",
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm=True,
        attention_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        windows=tuple(window if local else None for local in sliding),
        attention_soft_cap=fields.optional_number("attn_logit_softcapping"),
        final_soft_cap=fields.optional_number("final_logit_softcapping"),
        tied_head=fields.boolean("tie_word_embeddings", True),
    )


def _sliding_layers(fields: Fields, *, num_layers: int) -> list[bool]:
    """Which layers see only a window: from layer_types, or from the older sliding_window_pattern."""
    kinds = fields.texts("layer_types")
    if not kinds:
        pattern = fields.first("sliding_window_pattern", "_sliding_window_pattern")
        return sliding_layers(num_layers, pattern=fields.integer(pattern, GEMMA3_SLIDING_PATTERN))
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown or len(kinds) != num_layers:
        fields.fail(f"layer_types must be sliding_attention or full_attention, {num_layers} times, got {kinds}")
    return [kind == "sliding_attention" for kind in kinds]


def sliding_layers(num_layers: int, *, pattern: int) -> list[bool]:
    """Every `pattern`-th layer sees everything, the others a window."""
    return [(layer + 1) % pattern != 0 for layer in range(num_layers)]


Rope = tuple[float, RopeScaling | None]


def _gemma3_ropes(fields: Fields, *, max_len: int) -> tuple[Rope, Rope]:
    """Base and scaling of the layers that see everything, and of the sliding ones."""

    def rope(kind: Literal["full_attention", "sliding_attention"], base_name: str, base: float) -> Rope:
        both = fields.inner("rope_parameters")
        if both is not None:
            parameters = both.inner(kind)
        else:
            parameters = fields.inner("rope_scaling") if kind == "full_attention" else None
        parameters = parameters or Fields({}, fields.source)
        scaling = scaling_of(parameters, fields, max_len=max_len)
        return parameters.number("rope_theta", fields.number(base_name, base)), scaling

    return rope("full_attention", "rope_theta", 1e6), rope("sliding_attention", "rope_local_base_freq", 1e4)


def _activation(fields: Fields, name: str, default: str, supported: tuple[str, ...]) -> None:
    activation = fields.text(name, default)
    if activation not in supported:
        fields.fail(f"{name} {activation!r} is not supported; supported: {', '.join(supported)}")


def _even_share(fields: Fields, hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        fields.fail(f"hidden size {hidden_size} is no multiple of {num_heads} heads")
    return hidden_size // num_heads


def _eos_ids(fields: Fields, generation: Fields, vocab_size: int, *, default: int) -> tuple[int, ...]:
    """The ids that end an answer: the config's, then what generation_config.json adds (a chat model's end of turn)."""
    if "eos_token_id" in fields.values or default >= vocab_size:
        ids = fields.ids("eos_token_id", vocab_size=vocab_size)
    else:
        ids = (default,)
    return tuple(dict.fromkeys(ids + generation.ids("eos_token_id", vocab_size=vocab_size)))


def _bos_id(fields: Fields, vocab_size: int) -> int | None:
    ids = fields.ids("bos_token_id", vocab_size=vocab_size)
    return ids[0] if ids else None


FAMILIES: dict[str, Callable[[Fields, Fields], ModelConfig]] = {
    "gpt2": _gpt2,
    "bloom": _bloom,
    "llama": _llama,
    "gemma3_text": _gemma3,
}
