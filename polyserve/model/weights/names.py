"""Which tensor of a checkpoint goes where: one table for each family and format, as data.

A table maps a checkpoint's name to a Place. `#` stands for the number of a layer, on both sides. A Place is a parameter
of Decoder, which of its rows the tensor fills, and how its rows lie in the file:

part        "" all rows; q, k, v: rows of the fused qkv product; gate, up: rows of the fused gate | up product
layout      as it is       rows of the file are rows of the parameter
            conv1d         the file has [in, out] where the parameter has [out, in]: GPT-2's Conv1D. Checkpoints of
                           PolyLM come in either layout; `polyserve.model.weights.load` looks at the shapes
            by head        the file's rows go head by head, q, k and v of each together: BLOOM
            neighbours     rotary pairs are neighbouring rows of each head, where the parameter has them D / 2 apart:
                           Llama in GGUF
plus_one    the file has w where the norm multiplies by 1 + w: Gemma in safetensors (GGUF files have 1 + w already)
A bias follows the rows of its matrix.
"""

import re
from dataclasses import dataclass
from typing import Literal

Part = Literal["", "q", "k", "v", "gate", "up"]
Layout = Literal["as it is", "conv1d", "by head", "neighbours"]


@dataclass(frozen=True, slots=True)
class Place:
    parameter: str
    part: Part = ""
    layout: Layout = "as it is"
    plus_one: bool = False

    def in_layer(self, layer: int) -> "Place":
        return Place(self.parameter.replace("#", str(layer)), self.part, self.layout, self.plus_one)


@dataclass(frozen=True, slots=True)
class NameTable:
    """`prefixes` are what a name may begin with besides: checkpoints of the bare model leave it out."""

    places: dict[str, Place]
    head: str  # the head's name; tied checkpoints may hold it as a copy of `words`
    words: str
    prefixes: tuple[str, ...] = ()
    ignored: re.Pattern[str] = re.compile(r"(?!)")  # buffers that say nothing: causal masks, rotary frequencies


def _matrices(*rows: tuple[str, str, Part, Layout]) -> dict[str, Place]:
    """Weight and bias of each row: (name in the file, parameter, part, layout)."""
    places: dict[str, Place] = {}
    for name, parameter, part, layout in rows:
        places[f"{name}.weight"] = Place(f"{parameter}.weight", part, layout)
        places[f"{name}.bias"] = Place(f"{parameter}.bias", part, "as it is" if layout == "conv1d" else layout)
    return places


def _norms(*rows: tuple[str, str], plus_one: bool = False) -> dict[str, Place]:
    """Weight and bias of each norm: (name in the file, module)."""
    places: dict[str, Place] = {}
    for name, module in rows:
        places[f"{name}.weight"] = Place(f"{module}.weight", plus_one=plus_one)
        places[f"{name}.bias"] = Place(f"{module}.bias")
    return places


GPT2 = NameTable(
    places={
        "wte.weight": Place("embedding.weight"),
        "wpe.weight": Place("embedding.positions"),
        "lm_head.weight": Place("head"),
        **_matrices(
            ("h.#.attn.c_attn", "layers.#.attention.qkv", "", "conv1d"),
            ("h.#.attn.c_proj", "layers.#.attention.out", "", "conv1d"),
            ("h.#.mlp.c_fc", "layers.#.mlp.up", "", "conv1d"),
            ("h.#.mlp.c_proj", "layers.#.mlp.down", "", "conv1d"),
        ),
        **_norms(("h.#.ln_1", "layers.#.attention_norm"), ("h.#.ln_2", "layers.#.mlp_norm"), ("ln_f", "norm")),
    },
    head="lm_head.weight",
    words="wte.weight",
    prefixes=("transformer.",),
    ignored=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
)

BLOOM = NameTable(
    places={
        "word_embeddings.weight": Place("embedding.weight"),
        "lm_head.weight": Place("head"),
        **_matrices(
            ("h.#.self_attention.query_key_value", "layers.#.attention.qkv", "", "by head"),
            ("h.#.self_attention.dense", "layers.#.attention.out", "", "as it is"),
            ("h.#.mlp.dense_h_to_4h", "layers.#.mlp.up", "", "as it is"),
            ("h.#.mlp.dense_4h_to_h", "layers.#.mlp.down", "", "as it is"),
        ),
        **_norms(
            ("word_embeddings_layernorm", "embedding.norm"),
            ("h.#.input_layernorm", "layers.#.attention_norm"),
            ("h.#.post_attention_layernorm", "layers.#.mlp_norm"),
            ("ln_f", "norm"),
        ),
    },
    head="lm_head.weight",
    words="word_embeddings.weight",
    prefixes=("transformer.",),
)

_LLAMA_MATRICES: tuple[tuple[str, str, Part, Layout], ...] = (
    ("layers.#.self_attn.q_proj", "layers.#.attention.qkv", "q", "as it is"),
    ("layers.#.self_attn.k_proj", "layers.#.attention.qkv", "k", "as it is"),
    ("layers.#.self_attn.v_proj", "layers.#.attention.qkv", "v", "as it is"),
    ("layers.#.self_attn.o_proj", "layers.#.attention.out", "", "as it is"),
    ("layers.#.mlp.gate_proj", "layers.#.mlp.up", "gate", "as it is"),
    ("layers.#.mlp.up_proj", "layers.#.mlp.up", "up", "as it is"),
    ("layers.#.mlp.down_proj", "layers.#.mlp.down", "", "as it is"),
)

LLAMA = NameTable(
    places={
        "embed_tokens.weight": Place("embedding.weight"),
        "lm_head.weight": Place("head"),
        **_matrices(*_LLAMA_MATRICES),
        **_norms(
            ("layers.#.input_layernorm", "layers.#.attention_norm"),
            ("layers.#.post_attention_layernorm", "layers.#.mlp_norm"),
            ("norm", "norm"),
        ),
    },
    head="lm_head.weight",
    words="embed_tokens.weight",
    prefixes=("model.",),
    ignored=re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
)

GEMMA3 = NameTable(
    places={
        "embed_tokens.weight": Place("embedding.weight"),
        "lm_head.weight": Place("head"),
        **_matrices(*_LLAMA_MATRICES),
        **_norms(
            ("layers.#.input_layernorm", "layers.#.attention_norm"),
            ("layers.#.post_attention_layernorm", "layers.#.attention_post_norm"),
            ("layers.#.pre_feedforward_layernorm", "layers.#.mlp_norm"),
            ("layers.#.post_feedforward_layernorm", "layers.#.mlp_post_norm"),
            ("layers.#.self_attn.q_norm", "layers.#.attention.q_norm"),
            ("layers.#.self_attn.k_norm", "layers.#.attention.k_norm"),
            ("norm", "norm"),
            plus_one=True,
        ),
    },
    head="lm_head.weight",
    words="embed_tokens.weight",
    prefixes=("model.",),
)

_GGUF_ENDS = {"token_embd.weight": Place("embedding.weight"), "output.weight": Place("head")}
_GGUF_OUT = ("blk.#.attn_output", "layers.#.attention.out", "", "as it is")
_GGUF_NORMS = (
    ("blk.#.attn_norm", "layers.#.attention_norm"),
    ("blk.#.ffn_norm", "layers.#.mlp_norm"),
    ("output_norm", "norm"),
)

GGUF_GPT2 = NameTable(
    places={
        **_GGUF_ENDS,
        "position_embd.weight": Place("embedding.positions"),
        **_matrices(
            ("blk.#.attn_qkv", "layers.#.attention.qkv", "", "as it is"),
            ("blk.#.attn_output", "layers.#.attention.out", "", "as it is"),
            ("blk.#.ffn_up", "layers.#.mlp.up", "", "as it is"),
            ("blk.#.ffn_down", "layers.#.mlp.down", "", "as it is"),
        ),
        **_norms(*_GGUF_NORMS, ("token_embd_norm", "embedding.norm")),  # the last: BLOOM alone
    },
    head="output.weight",
    words="token_embd.weight",
)


def _gguf_gated(q_and_k: Layout) -> dict[str, Place]:
    return {
        **_GGUF_ENDS,
        **_matrices(
            ("blk.#.attn_q", "layers.#.attention.qkv", "q", q_and_k),
            ("blk.#.attn_k", "layers.#.attention.qkv", "k", q_and_k),
            ("blk.#.attn_v", "layers.#.attention.qkv", "v", "as it is"),
            ("blk.#.attn_output", "layers.#.attention.out", "", "as it is"),
            ("blk.#.ffn_gate", "layers.#.mlp.up", "gate", "as it is"),
            ("blk.#.ffn_up", "layers.#.mlp.up", "up", "as it is"),
            ("blk.#.ffn_down", "layers.#.mlp.down", "", "as it is"),
        ),
        **_norms(*_GGUF_NORMS),
    }


GGUF_LLAMA = NameTable(
    places=_gguf_gated("neighbours"),
    head="output.weight",
    words="token_embd.weight",
    ignored=re.compile(r"rope_freqs\.weight"),  # read with the config
)

GGUF_GEMMA3 = NameTable(
    places={
        **_gguf_gated("as it is"),
        **_norms(
            ("blk.#.post_attention_norm", "layers.#.attention_post_norm"),
            ("blk.#.post_ffw_norm", "layers.#.mlp_post_norm"),
            ("blk.#.attn_q_norm", "layers.#.attention.q_norm"),
            ("blk.#.attn_k_norm", "layers.#.attention.k_norm"),
        ),
    },
    head="output.weight",
    words="token_embd.weight",
)

TABLES: dict[str, NameTable] = {"gpt2": GPT2, "polylm": GPT2, "bloom": BLOOM, "llama": LLAMA, "gemma3": GEMMA3}
GGUF_TABLES: dict[str, NameTable] = {
    "gpt2": GGUF_GPT2,
    "polylm": GGUF_GPT2,
    "bloom": GGUF_GPT2,
    "llama": GGUF_LLAMA,
    "gemma3": GGUF_GEMMA3,
}
