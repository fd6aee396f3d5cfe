"""Rotary settings of a `config.json`, in the spelling of `transformers` 5 or of the versions before it.

5       rope_parameters: {rope_type, rope_theta, ...}, in Gemma 3 one such object for each kind of layer
before  rope_theta beside rope_scaling: {type or rope_type, ...}
A key that is not known for its kind of scaling is refused: it may change the angles.
"""

import math

from polyserve.model.config import RopeScaling
from polyserve.model.fields import Fields

_COMMON_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_YARN_KEYS = {
    *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    *("mscale", "mscale_all_dim", "truncate"),
}
_LLAMA3_KEYS = {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": _YARN_KEYS,
    "llama3": _LLAMA3_KEYS,
}


def scaling_of(rope: Fields, config: Fields, *, max_len: int) -> RopeScaling | None:
    """The scaling that `rope` describes, None for plain rotary. max_len: the config's max_position_embeddings."""
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in _KEYS:
        rope.fail(f"rope type {kind!r} is not supported; supported: {', '.join(_KEYS)}")
    for name in rope.values:
        if rope.has(name) and name not in _COMMON_KEYS | _KEYS[kind]:
            rope.fail(f"{name} is not supported for rope type {kind!r}")
    rope.refuse("partial_rotary_factor", unless=1.0)
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=rope.number("factor"))
    if kind == "dynamic":
        return RopeScaling(kind="dynamic", factor=rope.number("factor"), original_max_len=max_len)
    inner_len = rope.integer("original_max_position_embeddings", max_len)
    original_max_len = config.integer("original_max_position_embeddings", inner_len)
    if kind == "llama3":
        return _llama3(rope, original_max_len=original_max_len)
    return _yarn(rope, original_max_len=original_max_len, max_len=max_len)


def stretched_len(scaling: RopeScaling | None, *, max_len: int) -> int:
    """Longest sequence, when max_len (the config's max_position_embeddings) does not count what the scaling adds.

    `transformers` asks not to raise max_position_embeddings for these kinds; Llama 3.1 has its final value.
    """
    if scaling is None or scaling.kind not in ("linear", "dynamic", "yarn"):
        return max_len
    trained_len = scaling.original_max_len or max_len
    return max(max_len, int(trained_len * scaling.factor))


def _llama3(rope: Fields, *, original_max_len: int) -> RopeScaling:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        rope.fail(f"high_freq_factor must be more than low_freq_factor ({low:g}), got {high:g}")
    return RopeScaling(
        kind="llama3",
        factor=rope.number("factor"),
        original_max_len=original_max_len,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(rope: Fields, *, original_max_len: int, max_len: int) -> RopeScaling:
    factor = rope.number("factor", max_len / original_max_len)
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_len=original_max_len,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.boolean("truncate", True),
        attention_factor=rope.number("attention_factor", _yarn_attention_factor(rope, factor)),
    )


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    """YaRN's own 0.1 ln(s) + 1, or DeepSeek's ratio of two such terms if both mscale fields are there."""
    mscale, mscale_all = rope.optional_number("mscale"), rope.optional_number("mscale_all_dim")
    if mscale is not None and mscale_all is not None:
        return yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all)
    return yarn_magnitude(factor)


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """How much cos and sin grow when frequencies are stretched by a factor."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
