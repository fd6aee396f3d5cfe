"""Everything in which one decoder differs from another, as data. There are no family subclasses.

Shapes  C hidden_size   Hq num_heads   Hkv num_kv_heads   D head_size   F mlp_size   V vocab_size
Lengths are in tokens. `polyserve.model.families` makes these values from a `config.json` or from GGUF metadata.
"""

from dataclasses import dataclass
from typing import Literal

MAX_LEN = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length. Fields that a kind does not use have defaults.

    linear   Position Interpolation, https://arxiv.org/abs/2306.15595
    dynamic  NTK by the longest sequence that is served, no stretch while that is within the trained length: one number
             for an engine's life, since keys are cached rotated (`transformers` follows the sequence instead)
    yarn     https://arxiv.org/abs/2309.00071
    llama3   Llama 3.1's piecewise scaling
    factors  each frequency divided by a number of its own, as GGUF files store Llama 3.1's
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3", "factors"]
    factor: float = 1.0
    original_max_len: int = 0  # the trained length
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: the ramp begins and ends at whole frequencies
    attention_factor: float = 1.0  # yarn: multiplies cos and sin
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One decoder. Position schemes are independent fields, each with a scale, so that a conversion can pass from one
    to another.

    Raises ValueError if the fields contradict each other.
    """

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
    norm_placement: Literal["pre", "sandwich"] = (
        "pre"  # sandwich: also after attention and after the MLP, before the sum
    )
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    mlp: Literal["gelu", "gated_silu", "gated_gelu"] = "gelu"  # GELU by its tanh form
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    attention_scale: float = 0.0  # 0: head_size ** -0.5
    windows: tuple[
        int | None, ...
    ] = ()  # one a layer: keys this many tokens back or more are hidden; empty: none anywhere
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    tied_head: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.max_len <= MAX_LEN:
            raise ValueError(f"the longest sequence must have from 1 to {MAX_LEN} tokens, got {self.max_len}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} heads cannot share {self.num_kv_heads} key/value heads evenly")
        if self.rotary_size % 2 or self.rotary_size > self.head_size:
            raise ValueError(f"rotary size {self.rotary_size} must be even and at most the head size {self.head_size}")
        rotary_layers = self.num_layers if self.rotary_size else 0
        if len(self.rope_bases) != rotary_layers or len(self.rope_scalings) != rotary_layers:
            raise ValueError(f"rotary bases and scalings must be given for each of {rotary_layers} layers")
        if any(base <= 1 for base in self.rope_bases):
            raise ValueError(f"rotary bases must be more than 1, got {min(self.rope_bases):g}")
        if self.rotary_size == 2 and any(scaling and scaling.kind == "dynamic" for scaling in self.rope_scalings):
            raise ValueError("dynamic rotary scaling needs more than one frequency")
        if self.windows and len(self.windows) != self.num_layers:
            raise ValueError(f"{len(self.windows)} windows for {self.num_layers} layers")

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    @property
    def score_scale(self) -> float:
        """What multiplies q.k before the softmax."""
        return self.attention_scale or self.head_size**-0.5

    @property
    def layer_weights(self) -> int:
        """Elements of the matrices of one layer."""
        attention = 2 * self.head_size * (self.num_heads + self.num_kv_heads)
        return self.hidden_size * (attention + self.mlp_size * (3 if self.gated else 2))

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate beside its up projection."""
        return self.mlp != "gelu"
