"""The operations of this backend by name; `polyserve_kernels.backend.Backend` is what is asked of it.

Rotary and products of quantised weights have the gradients of the reference, which computes the operation once more
for them. The others have gradients of their own.
"""

from polyserve_kernels.autograd import recomputed
from polyserve_kernels.cpu import packed as packing
from polyserve_kernels.cpu import quantized_matmul as quantized_product
from polyserve_kernels.cpu import rotary as turning
from polyserve_kernels.cpu.activation import bias_gelu, gated_gelu, gated_silu
from polyserve_kernels.cpu.attention import attention_varlen, paged_decode, paged_prefill
from polyserve_kernels.cpu.cross_entropy import token_logprobs
from polyserve_kernels.cpu.decoder import DecoderStep as decoder_step
from polyserve_kernels.cpu.kv_cache import copy_blocks, rotary_write_kv
from polyserve_kernels.cpu.linear_cross_entropy import linear_cross_entropy
from polyserve_kernels.cpu.matmul import matmul
from polyserve_kernels.cpu.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from polyserve_kernels.cpu.sampling import head_logits, head_topk, num_vocab_tiles
from polyserve_kernels.reference import backend as reference
from polyserve_kernels.reference.random import random_uniform

__all__ = [
    "add_layer_norm", "add_rms_norm", "attention_varlen", "bias_gelu", "copy_blocks", "decoder_step", "gated_gelu",
    "gated_silu", "head_logits", "head_topk", "layer_norm", "linear_cross_entropy", "matmul", "num_vocab_tiles",
    "packing", "paged_decode", "paged_prefill", "quantized_matmul", "random_uniform", "rms_norm", "rotary",
    "rotary_write_kv", "token_logprobs",
]  # fmt: skip

quantized_matmul = recomputed(quantized_product.quantized_matmul, reference.quantized_matmul)
rotary = recomputed(turning.rotary, reference.rotary, results=2)
