"""Shipped calls of dense products: matmul, quantised too, and what samples from the head, scores and trains.

Flops   2 T N K
"""

from collections.abc import Iterator
from typing import Literal

import torch

from polyserve_kernels import ops
from polyserve_kernels.triton.shipped.call import EVERY_ARCHITECTURE, Shipped
from polyserve_kernels.triton.shipped.models import (
    BF16,
    DECODE_ROWS,
    FP16,
    FP32,
    GEMMA3,
    GPT2,
    POLYLM_1B7,
    POLYLM_13B,
    PREFILL_ROWS,
    SMOLLM2,
    Model,
    tensor,
    word,
)  # fmt: skip
from polyserve_kernels.types import LogitEdits, QuantizedWeight

Scheme = Literal["int8", "int4", "fp8"]


def product_flops(rows: int, columns: int, depth: int) -> int:
    return 2 * rows * columns * depth


def calls() -> Iterator[Shipped]:
    yield from _matmul()
    yield from _quantized_matmul()
    yield from _head()
    yield from _loss()


def _matmul() -> Iterator[Shipped]:
    sizes = [(POLYLM_13B, "qkv", 15360, 5120), (POLYLM_13B, "down", 5120, 20480), (POLYLM_1B7, "down", 2048, 8192)]
    sizes += [(GPT2, "up", 3072, 768)]
    sizes += [(SMOLLM2, "qkv", 960, 576), (GEMMA3, "gate and up", 13824, 1152)]
    for model, what, columns, depth in sizes:
        for rows in (DECODE_ROWS, PREFILL_ROWS):
            for dtype in (BF16, FP16, FP32) if model is POLYLM_13B else (BF16,):
                bias = tensor(columns, dtype=dtype) if model.norm == "layer" and what != "up" else None
                yield Shipped(
                    operation=ops.matmul,
                    configuration=f"{model.name} {what}, {rows} rows, {word(dtype)}",
                    args=(tensor(rows, depth, dtype=dtype), tensor(columns, depth, dtype=dtype), bias),
                    flops=product_flops(rows, columns, depth),
                    many_rows=rows == PREFILL_ROWS,
                    products=f"matmul {word(dtype)}",
                )


def _quantized_matmul() -> Iterator[Shipped]:
    schemes: list[tuple[Scheme, int, torch.dtype]] = [("int8", 0, FP32), ("int8", 128, BF16)]
    schemes += [("fp8", 0, FP32), ("fp8", 128, BF16), *(("int4", group, BF16) for group in (16, 32, 64, 128))]
    sizes = [(POLYLM_13B, "qkv", 15360, 5120, each) for each in schemes]
    sizes += [(POLYLM_1B7, "down", 2048, 8192, each) for each in (schemes[0], schemes[-1])]
    for model, what, columns, depth, (scheme, group, scale_dtype) in sizes:
        for rows in (DECODE_ROWS, PREFILL_ROWS):
            groups = f"groups of {group}" if group else "a scale a row"
            weight = quantized_weight(scheme, columns, depth, group or depth, scale_dtype)
            yield Shipped(
                operation=ops.quantized_matmul,
                configuration=f"{model.name} {what}, {rows} rows, {scheme}, {groups}",
                args=(tensor(rows, depth), weight, tensor(columns)),
                flops=product_flops(rows, columns, depth),
                many_rows=rows == PREFILL_ROWS,
                products="matmul bfloat16",
                architectures=tuple(arch for arch in EVERY_ARCHITECTURE if arch >= 89 or scheme != "fp8"),
            )


def quantized_weight(scheme: Scheme, columns: int, depth: int, group: int, scale_dtype: torch.dtype) -> QuantizedWeight:
    shape, dtype = {
        "int8": ((columns, depth), torch.int8),
        "int4": ((columns, depth // 2), torch.uint8),
        "fp8": ((columns, depth), torch.float8_e4m3fn),
    }[scheme]
    scales, minimums = (tensor(columns, depth // group, dtype=scale_dtype) for _ in range(2))
    return QuantizedWeight(
        scheme=scheme,
        values=tensor(*shape, dtype=dtype),
        scales=scales,
        minimums=minimums if scheme == "int4" else None,
    )


def _head() -> Iterator[Shipped]:
    for model, soft_cap in ((POLYLM_13B, None), (GPT2, None), (GEMMA3, 30.0)):
        for rows in (1, DECODE_ROWS, 256) if model is POLYLM_13B else (1, DECODE_ROWS):
            hidden, weight = tensor(rows, model.hidden), tensor(model.vocab, model.hidden)
            flops = product_flops(rows, model.vocab, model.hidden)
            for edited in (False, True):
                yield Shipped(
                    operation=ops.head_topk,
                    configuration=f"{model.name}, {rows} rows" + ", edits, draws, top 8" * edited,
                    args=(hidden, weight),
                    options={"k": 128, "soft_cap": soft_cap, **(_edited(model, rows) if edited else {})},
                    flops=flops,
                    many_rows=rows > DECODE_ROWS,
                    products="head",
                )
            yield Shipped(
                operation=ops.head_logits,
                configuration=f"{model.name}, {rows} rows",
                args=(hidden, weight),
                options={"soft_cap": soft_cap},
                flops=flops,
                many_rows=rows > DECODE_ROWS,
                products="head",
            )
        rows = PREFILL_ROWS
        yield Shipped(
            operation=ops.token_logprobs,
            configuration=f"{model.name}, {rows} rows, top 8",
            args=(tensor(rows, model.hidden), tensor(model.vocab, model.hidden), tensor(rows, dtype=torch.int64)),
            options={"num_top": 8, "soft_cap": soft_cap},
            flops=product_flops(rows, model.vocab, model.hidden),
            many_rows=True,
            products="head",
        )


def _loss() -> Iterator[Shipped]:
    for model, soft_cap in ((POLYLM_13B, None), (GPT2, None), (GEMMA3, 30.0)):
        rows = PREFILL_ROWS
        for backward in (False, True):
            flops = product_flops(rows, model.vocab, model.hidden)
            yield Shipped(
                operation=ops.linear_cross_entropy,
                configuration=f"{model.name}, {rows} rows",
                args=(tensor(rows, model.hidden), tensor(model.vocab, model.hidden), tensor(rows, dtype=torch.int64)),
                options={"soft_cap": soft_cap},
                flops=3 * flops if backward else flops,
                gradients_of=(0, 1) if backward else (),
                many_rows=True,
                products="head",
            )


def _edited(model: Model, rows: int) -> dict[str, object]:
    num_edits = 64 * rows
    entries = {name: tensor(num_edits, dtype=torch.int64) for name in ("rows", "ids")}
    entries |= {name: tensor(num_edits, dtype=FP32) for name in ("repetition", "bias")}
    allowed = tensor(rows, -(-model.vocab // 32), dtype=torch.int32)
    num_tiles = ops.num_vocab_tiles(model.vocab, model.hidden, device=torch.device("meta"))
    return {
        "edits": LogitEdits(**entries, allowed=allowed),
        "temperature": tensor(rows, dtype=FP32),
        "uniforms": tensor(rows, num_tiles, 2, dtype=FP32),
        "num_top": 8,
    }
