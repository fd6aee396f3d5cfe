"""Everything in which one decoder differs from another, as data. There are no family subclasses.

Shapes  C hidden_size   Hq num_heads   Hkv num_kv_heads   D head_size   F mlp_size   V vocab_size
Lengths are in tokens. `polyserve.model.families` makes these values from a `config.json` or from GGUF metadata.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length. Fields that a kind does not use keep their defaults.

    linear   Position Interpolation, https://arxiv.org/abs/2306.15595
    dynamic  NTK by the longest length this engine serves (a fixed number: keys are cached rotated, so it may not change later)
    yarn     https://arxiv.org/abs/2309.00071      llama3   Llama 3.1's piecewise scaling
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: float
    original_max_len: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One decoder. Position schemes are independent fields, each with a scale, so that a conversion can pass from one to another."""

    family: str  # polylm, gpt2, bloom, llama, gemma3: for names and messages; the decoder never asks
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    mlp_size: int
    max_len: int  # longest sequence the model was made for
    eos_ids: tuple[int, ...]
    bos_id: int | None = None

    # positions
    learned_positions: bool = False
    learned_positions_scale: float = 1.0
    alibi_scale: float = 0.0  # 0: none
    rotary_size: int = 0  # leading elements of each head that rotate; 0: none
    rotary_scale: float = 1.0  # multiplies every angle
    rotary_interleaved: bool = False
    rope_bases: tuple[float, ...] = ()  # one a layer
    rope_scalings: tuple[RopeScaling | None, ...] = ()  # one a layer

    # blocks
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    norm_placement: Literal["pre", "sandwich"] = "pre"  # sandwich: also after attention and after the MLP, before the residual sum
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    mlp: Literal["gelu", "gated_silu", "gated_gelu"] = "gelu"  # GELU by its tanh form
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    attention_scale: float = 0.0  # 0: head_size ** -0.5
    windows: tuple[int | None, ...] = ()  # one a layer: keys this many tokens back or more are hidden; empty: none anywhere
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    tied_head: bool = True

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    @property
    def score_scale(self) -> float:
        """What multiplies q.k before the softmax."""
        return self.attention_scale or self.head_size**-0.5
