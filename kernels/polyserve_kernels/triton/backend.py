"""The operations of this backend by name; `polyserve_kernels.backend.Backend` is what is asked of it."""

from polyserve_kernels.triton.activation import bias_gelu, gated_gelu, gated_silu
from polyserve_kernels.triton.attention import paged_prefill
from polyserve_kernels.triton.attention_backward import attention_varlen
from polyserve_kernels.triton.attention_decode import paged_decode
from polyserve_kernels.triton.cross_entropy import token_logprobs
from polyserve_kernels.triton.kv_cache import copy_blocks, rotary_write_kv
from polyserve_kernels.triton.linear_cross_entropy import linear_cross_entropy
from polyserve_kernels.triton.matmul import matmul
from polyserve_kernels.triton.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from polyserve_kernels.triton.quantized_matmul import quantized_matmul
from polyserve_kernels.triton.random import random_uniform
from polyserve_kernels.triton.rotary import rotary
from polyserve_kernels.triton.sampling import head_logits, head_topk, num_vocab_tiles

__all__ = [
    "add_layer_norm", "add_rms_norm", "attention_varlen", "bias_gelu", "copy_blocks", "decoder_step", "gated_gelu",
    "gated_silu", "head_logits", "head_topk", "layer_norm", "linear_cross_entropy", "matmul", "num_vocab_tiles",
    "packing", "paged_decode", "paged_prefill", "quantized_matmul", "random_uniform", "rms_norm", "rotary",
    "rotary_write_kv", "token_logprobs",
]  # fmt: skip

decoder_step = None  # a decoder is computed operation by operation
packing = None  # weights are multiplied as torch keeps them
