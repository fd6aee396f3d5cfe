"""Shipped calls of what is bound by memory: norms, activations, rotary positions, the cache, random numbers.

Flops   counted for an element, roughly: memory bounds these operations
"""

from collections.abc import Iterator

import torch

from polyserve_kernels import ops
from polyserve_kernels.triton.shipped.attention import BLOCK_SIZE, Scored, architectures_with
from polyserve_kernels.triton.shipped.call import Operation, Shipped
from polyserve_kernels.triton.shipped.models import (
    BF16,
    DECODE_ROWS,
    FP32,
    GEMMA3,
    GPT2,
    LLAMA_8B,
    POLYLM_13B,
    PREFILL_ROWS,
    SMOLLM2,
    Model,
    tensor,
    word,
)  # fmt: skip

NORM_FLOPS, NORM_BACKWARD_FLOPS = 8, 16
ACTIVATION_FLOPS, ACTIVATION_BACKWARD_FLOPS = 12, 24
ROTARY_FLOPS = 3
RANDOM_FLOPS = 100  # of integers: ten rounds of Philox, for four numbers


def calls() -> Iterator[Shipped]:
    yield from _norms()
    yield from _activations()
    yield from _rotary()
    yield from _cache()
    yield from _random()


def _norms() -> Iterator[Shipped]:
    for model in (POLYLM_13B, GPT2, LLAMA_8B, GEMMA3):
        operation = ops.rms_norm if model.norm == "rms" else ops.layer_norm
        for rows in (DECODE_ROWS, PREFILL_ROWS):
            for with_residual in (False, True):
                yield from _norm(operation, model, rows, with_residual)
    q, _, _ = Scored(GEMMA3).heads(PREFILL_ROWS)
    yield Shipped(
        operation=ops.rms_norm,
        configuration=f"{GEMMA3.name} queries, {PREFILL_ROWS} rows",
        args=(q, tensor(GEMMA3.head_size, dtype=FP32)),
        options={"eps": 1e-6},
        flops=NORM_FLOPS * q.numel(),
    )


def _norm(operation: Operation, model: Model, rows: int, with_residual: bool) -> Iterator[Shipped]:
    weights = [tensor(model.hidden, dtype=FP32) for _ in range(2 if model.norm == "layer" else 1)]
    for backward in (False, True) if rows == PREFILL_ROWS else (False,):
        x = tensor(rows, model.hidden)
        residual = tensor(rows, model.hidden, dtype=FP32) if with_residual else None
        yield Shipped(
            operation=operation,
            configuration=f"{model.name}, {rows} rows" + ", residual" * with_residual,
            args=(x, *weights),
            options={"eps": 1e-5, "residual": residual},
            flops=(NORM_BACKWARD_FLOPS if backward else NORM_FLOPS) * x.numel(),
            gradients_of=(*range(1 + len(weights)), *["residual"] * with_residual) if backward else (),
        )


def _activations() -> Iterator[Shipped]:
    for operation, model in ((ops.bias_gelu, POLYLM_13B), (ops.gated_silu, LLAMA_8B), (ops.gated_gelu, GEMMA3)):
        gated = operation is not ops.bias_gelu
        for rows in (DECODE_ROWS, PREFILL_ROWS):
            x = tensor(rows, model.mlp * (2 if gated else 1))
            for backward in (False, True) if rows == PREFILL_ROWS else (False,):
                yield Shipped(
                    operation=operation,
                    configuration=f"{model.name}, {rows} rows",
                    args=(x,) if gated else (x, tensor(model.mlp)),
                    flops=(ACTIVATION_BACKWARD_FLOPS if backward else ACTIVATION_FLOPS) * rows * model.mlp,
                    gradients_of=() if not backward else (0,) if gated else (0, 1),
                )


def _rotary() -> Iterator[Shipped]:
    for model in (SMOLLM2, LLAMA_8B, GEMMA3):
        q, k, _ = Scored(model).heads(PREFILL_ROWS)
        for interleaved in (False, True):
            angles = [tensor(PREFILL_ROWS, model.head_size // 2, dtype=FP32) for _ in range(2)]
            for backward in (False, True):
                yield Shipped(
                    operation=ops.rotary,
                    configuration=f"{model.name}, {PREFILL_ROWS} rows" + ", interleaved" * interleaved,
                    args=(q, k, *angles),
                    options={"interleaved": interleaved},
                    flops=ROTARY_FLOPS * (q.numel() + k.numel()),
                    gradients_of=(0, 1) if backward else (),
                )


def _cache() -> Iterator[Shipped]:
    for model in (POLYLM_13B, LLAMA_8B, GEMMA3):
        scored = Scored(model)
        for rows in (DECODE_ROWS, PREFILL_ROWS):
            for dtype in (BF16, torch.int8, torch.float8_e4m3fn):
                q, k, v = scored.heads(rows)
                angles = [tensor(rows, model.head_size // 2, dtype=FP32) if model.rotary else None for _ in range(2)]
                slots = tensor(rows, dtype=torch.int64)
                yield Shipped(
                    operation=ops.rotary_write_kv,
                    configuration=f"{model.name}, {rows} rows, cache {word(dtype)}",
                    args=(q, k, v, *angles, scored.cache(rows, dtype), slots),
                    flops=ROTARY_FLOPS * (q.numel() + k.numel()) if model.rotary else 0,
                    architectures=architectures_with(BF16, dtype),
                )
        pairs = 64  # each of the cache's blocks is a source or a destination
        yield Shipped(
            operation=ops.copy_blocks,
            configuration=f"{model.name}, {pairs} blocks",
            args=(scored.cache(2 * pairs * BLOCK_SIZE, BF16), tensor(pairs, 2, dtype=torch.int64)),
            flops=0,
        )


def _random() -> Iterator[Shipped]:
    for count in (1, 2000):  # a number for the sampler, and for each tile of a large vocabulary
        yield Shipped(
            operation=ops.random_uniform,
            configuration=f"{DECODE_ROWS} rows of {count}",
            args=(*(tensor(DECODE_ROWS, dtype=torch.int64) for _ in range(3)), 1, count),
            flops=RANDOM_FLOPS * DECODE_ROWS * count // 4,
        )
