"""A Decoder as the parts that a backend computes a whole forward pass from (`ops.decoder_step`)."""

from typing import cast, overload

from polyserve.model.decoder import Decoder, Layer
from polyserve.model.linear import Linear
from polyserve.model.norms import Norm
from polyserve.model.positions import RotaryTable
from polyserve_kernels.decoder_parts import DecoderParts, LayerParts, LinearParts, NormParts
from polyserve_kernels.types import Scoring


def parts_of(model: Decoder) -> DecoderParts:
    config, embedding = model.config, model.embedding
    layers = (cast(Layer, layer) for layer in model.layers)
    return DecoderParts(
        dtype=model.dtype,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_size=config.head_size,
        activation=config.mlp,
        interleaved=config.rotary_interleaved,
        eps=config.norm_eps,
        words=embedding.weight,
        words_scale=embedding.scale,
        position_table=embedding.positions,
        position_scale=embedding.positions_scale,
        embedding_norm=_norm(embedding.norm),
        layers=tuple(_layer(*pair) for pair in zip(layers, model.tables_of_layers, strict=True)),
        norm=_norm(model.norm),
    )


def _layer(layer: Layer, table: RotaryTable | None) -> LayerParts:
    attention, mlp, spec = layer.attention, layer.mlp, layer.attention.spec
    return LayerParts(
        qkv=_linear(attention.qkv),
        out=_linear(attention.out),
        up=_linear(mlp.up),
        down=_linear(mlp.down),
        attention_norm=_norm(layer.attention_norm),
        mlp_norm=_norm(layer.mlp_norm),
        q_norm=_norm(attention.q_norm),
        k_norm=_norm(attention.k_norm),
        attention_post_norm=_norm(layer.attention_post_norm),
        mlp_post_norm=_norm(layer.mlp_post_norm),
        angles=None if table is None else (table.cos, table.sin),
        scoring=Scoring(scale=spec.scale, soft_cap=spec.soft_cap, alibi_slopes=spec.alibi_slopes, window=spec.window),
    )


def _linear(linear: Linear) -> LinearParts:
    return LinearParts(linear.weight, linear.bias)


@overload
def _norm(norm: Norm) -> NormParts: ...
@overload
def _norm(norm: None) -> None: ...
def _norm(norm: Norm | None) -> NormParts | None:
    return None if norm is None else NormParts(norm.weight, norm.bias)
