"""Arguments that an operation cannot take are refused, with what was wanted and what came."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.types import BlockCache, LogitEdits, QuantizedWeight

X = torch.zeros(4, 8)
CACHE = torch.zeros(3, 16, 2, 8)
KV = BlockCache(CACHE, CACHE)
Q, K = torch.zeros(4, 6, 8), torch.zeros(4, 2, 8)
ANGLES = torch.zeros(4, 4)
SLOTS = torch.zeros(4, dtype=torch.int64)
TABLES, LENS = torch.zeros(4, 2, dtype=torch.int32), torch.ones(4, dtype=torch.int32)
BOUNDS = torch.tensor([0, 4], dtype=torch.int32)


def edits(**changes: Tensor) -> LogitEdits:
    entries = torch.zeros(1, dtype=torch.int64)
    values = {"rows": entries, "ids": entries, "repetition": torch.ones(1), "bias": torch.zeros(1)}
    return LogitEdits(**{**values, **changes})


def multiply_quantized(x: Tensor | None = None, bias: Tensor | None = None, **changes: object) -> Tensor:
    groups, values = torch.zeros(5, 2), torch.zeros(5, 32, dtype=torch.uint8)
    weight: dict[str, object] = {"scheme": "int4", "values": values, "scales": groups, "minimums": groups, **changes}
    w = QuantizedWeight(**weight)  # type: ignore[arg-type]
    return ops.quantized_matmul(torch.zeros(4, 64) if x is None else x, w, bias)


def attend(**options: object) -> Tensor:
    return ops.attention_varlen(Q, K, K, BOUNDS, scale=1.0, **options)  # type: ignore[arg-type]


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: ops.matmul(X, torch.zeros(5, 9)), "w must have shape [N, 8], got [5, 9]"),
    (lambda: ops.matmul(X[0], X), "x must have shape [T, K], got [8]"),
    (lambda: ops.matmul(X, X.bfloat16()), "w must be float32, got bfloat16"),
    (lambda: ops.matmul(X.double(), X.double()), "x must be float32 or bfloat16 or float16, got float64"),
    (lambda: ops.matmul(X, X, torch.zeros(5)), "bias must have shape [4], got [5]"),
    (lambda: ops.matmul(X, X, torch.zeros(4).half()), "bias must be float32, got float16"),
    (lambda: ops.matmul(X, X, out_dtype=torch.int8), "out_dtype must be float32 or bfloat16 or float16, got int8"),
    (lambda: ops.matmul(X, X.to("meta")), "x, w must be on one device, got cpu, meta"),
    (lambda: multiply_quantized(x=X), "w.values must have shape [N, 4], got [5, 32]"),
    (lambda: multiply_quantized(x=X[:, :7]), "x must have an even number of columns for a weight in int4, got 7"),
    (lambda: multiply_quantized(scheme="int5"), "w.scheme must be int8, int4, fp8, got int5"),
    (lambda: multiply_quantized(scheme="int8"), "w.values must be int8, got uint8"),
    (lambda: multiply_quantized(scheme="fp8"), "w.values must be float8_e4m3fn, got uint8"),
    (lambda: multiply_quantized(minimums=None), "w.minimums are needed for a weight in int4, got none"),
    (lambda: multiply_quantized(minimums=torch.zeros(5, 1)), "w.minimums must have shape [5, 2], got [5, 1]"),
    (lambda: multiply_quantized(minimums=torch.zeros(5, 2).half()), "w.minimums must be float32, got float16"),
    (
        lambda: multiply_quantized(minimums=torch.zeros(2, 5).t()),
        "w.minimums must have the strides of w.scales, [2, 1], got [1, 5]",
    ),
    (
        lambda: multiply_quantized(scheme="int8", values=torch.zeros(5, 64, dtype=torch.int8)),
        "w.minimums must be None for a weight in int8, got float32 [5, 2]",
    ),
    (
        lambda: multiply_quantized(values=torch.zeros(32, 5, dtype=torch.uint8).t()),
        "w.values must be contiguous, got strides [1, 5] for shape [5, 32]",
    ),
    (lambda: multiply_quantized(scales=torch.zeros(4, 2)), "w.scales must have shape [5, K / group], got [4, 2]"),
    (
        lambda: multiply_quantized(scales=torch.zeros(5, 3)),
        "w.scales must have a column for each 16, 32, 64, 128 channels of int4, got 3 for 64",
    ),
    (
        lambda: multiply_quantized(
            x=torch.zeros(4, 200), scheme="int8", values=torch.zeros(5, 200, dtype=torch.int8), minimums=None
        ),
        "w.scales must have a column for each 16, 32, 64, 128, 200 channels of int8, got 2 for 200",
    ),
    (lambda: multiply_quantized(bias=torch.zeros(4)), "bias must have shape [5], got [4]"),
    (lambda: multiply_quantized(bias=torch.zeros(5).half()), "bias must be float32, got float16"),
    (lambda: ops.rms_norm(X, X[0, :7], eps=1e-5), "weight must have shape [8], got [7]"),
    (lambda: ops.rms_norm(X, X[0], eps=0.0), "eps must be more than 0, got 0.0"),
    (lambda: ops.rms_norm(X, X[0], eps=1e-5, residual=X.half()), "residual must be float32, got float16"),
    (lambda: ops.rms_norm(X[0, 0], X[0], eps=1e-5), "x must have shape [..., C], got []"),
    (lambda: ops.layer_norm(X, X[0], X[0].half(), eps=1e-5), "bias must be float32, got float16"),
    (lambda: ops.layer_norm(X, X[0], X[0], eps=1e-5, residual=X[:2]), "residual must have shape [4, 8], got [2, 8]"),
    (lambda: ops.bias_gelu(X, X[0, :3]), "bias must have shape [8], got [3]"),
    (lambda: ops.gated_silu(X[:, :3]), "x must have an even number of columns, gate and up, got 3"),
    (lambda: ops.gated_gelu(X.int()), "x must be float32 or bfloat16 or float16, got int32"),
    (lambda: ops.rotary(Q, K, torch.zeros(4, 5), torch.zeros(4, 5)), "cos must have at most D / 2 = 4 columns, got 5"),
    (lambda: ops.rotary(Q, K, ANGLES, ANGLES[:, :2]), "sin must have shape [4, 4], got [4, 2]"),
    (lambda: ops.rotary(Q, K[:3], ANGLES, ANGLES), "k must have shape [4, Hkv, 8], got [3, 2, 8]"),
    (lambda: ops.rotary(Q[:, :5], K, ANGLES, ANGLES), "Hkv must divide Hq, got Hq 5 and Hkv 2"),
    (
        lambda: ops.rotary_write_kv(Q, K, K, ANGLES, None, KV, SLOTS),
        "cos and sin must be given together, got one of them",
    ),
    (
        lambda: ops.rotary_write_kv(Q, K, K, None, None, KV, SLOTS.int()),
        "slot_mapping must be int64, got int32",
    ),
    (
        lambda: ops.rotary_write_kv(Q, K, K, None, None, BlockCache(CACHE[..., :4], CACHE), SLOTS),
        "cache.k must have shape [num_blocks, block_size, 2, 8], got [3, 16, 2, 4]",
    ),
    (
        lambda: ops.copy_blocks(BlockCache(CACHE, CACHE.transpose(0, 1).contiguous().transpose(0, 1)), TABLES.long()),
        "cache.v must be contiguous, got strides [16, 48, 8, 1] for shape [3, 16, 2, 8]",
    ),
    (
        lambda: ops.copy_blocks(BlockCache(CACHE.to(torch.int8), CACHE.to(torch.int8)), TABLES.long()),
        "cache.k_scales are needed for a cache in int8, got none",
    ),
    (
        lambda: ops.copy_blocks(BlockCache(CACHE, CACHE, CACHE[..., 0]), TABLES.long()),
        "cache.k_scales must be None for a cache in float32, got float32 [3, 16, 2]",
    ),
    (lambda: ops.copy_blocks(KV, TABLES), "pairs must be int64, got int32"),
    (
        lambda: ops.copy_blocks(BlockCache(CACHE[:, :12].clone(), CACHE[:, :12].clone()), TABLES),
        "block_size must divide 128 or be a multiple of it, got 12",
    ),
    (lambda: ops.attention_varlen(Q, K, K, BOUNDS.long(), scale=1.0), "cu_seqlens must be int32, got int64"),
    (lambda: attend(window=0), "window must be more than 0, got 0"),
    (lambda: attend(soft_cap=-1.0), "soft_cap must be more than 0, got -1.0"),
    (lambda: attend(alibi_slopes=torch.zeros(2)), "alibi_slopes must have shape [6], got [2]"),
    (
        lambda: ops.paged_decode(Q, KV, TABLES[:3], LENS, scale=1.0),
        "seq_lens must have shape [3], got [4]",
    ),
    (
        lambda: ops.paged_decode(Q[:2], KV, TABLES, LENS, scale=1.0),
        "q must have shape [4, Hq, D], got [2, 6, 8]",
    ),
    (
        lambda: ops.paged_prefill(Q, KV, TABLES, LENS, BOUNDS, scale=1.0),
        "cu_seqlens_q must have shape [5], got [2]",
    ),
    (lambda: ops.head_topk(X, X, k=0), "k must be 1 to 4 (the vocabulary), got 0"),
    (lambda: ops.head_topk(X, X, k=5), "k must be 1 to 4 (the vocabulary), got 5"),
    (lambda: ops.head_topk(X, X, k=1, num_top=9), "num_top must be 0 to 4 (the vocabulary), got 9"),
    (
        lambda: ops.head_topk(X, X, k=1, uniforms=torch.ones(4, 2, 2)),
        "uniforms must have shape [4, 1, 2], got [4, 2, 2]",
    ),
    (lambda: ops.head_topk(X, X, k=1, temperature=torch.ones(3)), "temperature must have shape [4], got [3]"),
    (
        lambda: ops.head_logits(X, X, edits=edits(ids=torch.zeros(2, dtype=torch.int64))),
        "edits.ids must have shape [1], got [2]",
    ),
    (lambda: ops.head_logits(X, X, edits=edits(bias=SLOTS[:1])), "edits.bias must be float32, got int64"),
    (
        lambda: ops.head_logits(X, X, edits=edits(allowed=torch.zeros(4, 2, dtype=torch.int32))),
        "edits.allowed must have shape [4, 1], got [4, 2]",
    ),
    (lambda: ops.token_logprobs(X, X, SLOTS.int()), "targets must be int64, got int32"),
    (lambda: ops.linear_cross_entropy(X, X, SLOTS[:2]), "targets must have shape [4], got [2]"),
    (lambda: ops.linear_cross_entropy(X, X, SLOTS.int()), "targets must be int64, got int32"),
    (lambda: ops.linear_cross_entropy(X, X[:, :3], SLOTS), "weight must have shape [V, 8], got [4, 3]"),
    (lambda: ops.linear_cross_entropy(X, X, SLOTS, z_loss=-0.1), "z_loss must be 0 or more, got -0.1"),
    (lambda: ops.linear_cross_entropy(X, X, SLOTS, soft_cap=0.0), "soft_cap must be more than 0, got 0.0"),
    (lambda: ops.linear_cross_entropy(X, X, SLOTS.to("meta")), "hidden, targets must be on one device, got cpu, meta"),
    (lambda: ops.random_uniform(SLOTS, SLOTS[:2], SLOTS, 0, 1), "choices must have shape [4], got [2]"),
    (lambda: ops.random_uniform(SLOTS, SLOTS, SLOTS, -1, 1), "purpose must be 0 to 2**32 - 1, got -1"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_it_is_refused_with_what_was_wanted_and_what_came(call, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  (the whole message is compared)
        call()
    assert str(refusal.value) == message
