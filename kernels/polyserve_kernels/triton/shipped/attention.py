"""Shipped calls of attention, packed and paged, for every head size and option. A cache holds just what is read.

Flops   two products of q k^T and p v for each pair of a query and a key that it sees; backward five
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.triton.shipped.call import EVERY_ARCHITECTURE, Shipped
from polyserve_kernels.triton.shipped.models import (
    BF16,
    BLOOM_1B1,
    BLOOM_3B,
    DECODE_ROWS,
    FP16,
    FP32,
    GEMMA3,
    GPT2,
    LLAMA_8B,
    POLYLM_1B7,
    POLYLM_13B,
    PREFILL_ROWS,
    Model,
    tensor,
    word,
)  # fmt: skip
from polyserve_kernels.types import BlockCache

BLOCK_SIZE = 16  # tokens in a block of the cache
CONTEXT = 2048  # tokens that each sequence has when it decodes


def visible_pairs(num_queries: int, num_keys: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees; the queries stand at the end of the keys."""
    first = num_keys - num_queries
    return sum(min(i + 1, window or i + 1) for i in range(first, num_keys))


def attention_flops(model: Model, num_sequences: int, num_queries: int, num_keys: int, window: int | None) -> int:
    """Two products, q k^T and p v."""
    return 4 * model.heads * model.head_size * num_sequences * visible_pairs(num_queries, num_keys, window)


@dataclass(frozen=True, slots=True)
class Scored:
    """How a model's scores are made: the options of attention, and the dtype of its tensors."""

    model: Model
    dtype: torch.dtype = BF16
    alibi: bool = False
    window: int | None = None
    soft_cap: float | None = None

    @property
    def words(self) -> str:
        options = [
            "ALiBi" * self.alibi,
            f"window {self.window}" if self.window else "",
            f"soft cap {self.soft_cap:g}" if self.soft_cap else "",
        ]
        return ", ".join([self.model.name, f"D {self.model.head_size}", *filter(None, options), word(self.dtype)])

    @property
    def options(self) -> dict[str, object]:
        return {
            "scale": self.model.head_size**-0.5,
            "alibi_slopes": tensor(self.model.heads, dtype=FP32) if self.alibi else None,
            "window": self.window,
            "soft_cap": self.soft_cap,
        }

    @property
    def products(self) -> str:
        return f"attention, D {self.model.head_size}, {word(self.dtype)}"

    def heads(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as the parts of one product, which they are in a model without rotary."""
        model = self.model
        parts = [model.heads, model.kv_heads, model.kv_heads]
        joined = tensor(rows, sum(parts) * model.head_size, dtype=self.dtype)
        q, k, v = (
            part.unflatten(1, (-1, model.head_size))
            for part in joined.split([heads * model.head_size for heads in parts], dim=1)
        )
        return q, k, v

    def cache(self, num_tokens: int, dtype: torch.dtype) -> BlockCache:
        shape = (num_tokens // BLOCK_SIZE, BLOCK_SIZE, self.model.kv_heads, self.model.head_size)
        scaled = dtype in (torch.int8, torch.float8_e4m3fn)
        scales = [tensor(*shape[:3], dtype=FP32) if scaled else None for _ in range(2)]
        return BlockCache(tensor(*shape, dtype=dtype), tensor(*shape, dtype=dtype), *scales)


SCORED = (
    *(Scored(GPT2, dtype) for dtype in (BF16, FP32)),
    Scored(BLOOM_3B, alibi=True),
    Scored(BLOOM_1B1, alibi=True),
    *(Scored(POLYLM_1B7, dtype) for dtype in (BF16, FP16, FP32)),
    Scored(POLYLM_13B, alibi=True, window=1024, soft_cap=50.0),
    Scored(LLAMA_8B),
    Scored(GEMMA3),
    Scored(GEMMA3, window=512),
)

WITH_LITTLE_MEMORY = (Scored(LLAMA_8B),)  # on sm_86 too, whose shared memory it fills


def calls() -> Iterator[Shipped]:
    yield from _attention()
    yield from _paged()


def _attention() -> Iterator[Shipped]:
    for scored in SCORED:
        flops = attention_flops(scored.model, 1, PREFILL_ROWS, PREFILL_ROWS, scored.window)
        for backward in (False, True):
            yield Shipped(
                operation=ops.attention_varlen,
                configuration=f"{scored.words}, {PREFILL_ROWS} tokens",
                args=(*scored.heads(PREFILL_ROWS), tensor(2, dtype=torch.int32)),
                options=scored.options,
                flops=flops * 5 // 2 if backward else flops,
                gradients_of=(0, 1, 2) if backward else (),
                many_rows=True,
                products=None if backward else scored.products,
                architectures=(*architectures_with(scored.dtype), *([86] if scored in WITH_LITTLE_MEMORY else [])),
            )


def _paged() -> Iterator[Shipped]:
    for scored in SCORED:
        yield _prefill(scored, scored.dtype)
        yield _decode(scored, scored.dtype)
        if scored == Scored(POLYLM_1B7) or scored == Scored(GEMMA3):
            for dtype in (torch.int8, torch.float8_e4m3fn):
                yield _prefill(scored, dtype)
                yield _decode(scored, dtype)


def _prefill(scored: Scored, cache_dtype: torch.dtype) -> Shipped:
    rows = PREFILL_ROWS // 4  # a chunk of a prompt
    q, _, _ = scored.heads(rows)
    tables = tensor(1, CONTEXT // BLOCK_SIZE, dtype=torch.int32)
    lengths = (tensor(1, dtype=torch.int32), tensor(2, dtype=torch.int32))
    return Shipped(
        operation=ops.paged_prefill,
        configuration=f"{scored.words}, {rows} of {CONTEXT} tokens, cache {word(cache_dtype)}",
        args=(q, scored.cache(CONTEXT, cache_dtype), tables, *lengths),
        options=scored.options,
        flops=attention_flops(scored.model, 1, rows, CONTEXT, scored.window),
        many_rows=True,
        products=scored.products,
        architectures=architectures_with(scored.dtype, cache_dtype),
    )


def _decode(scored: Scored, cache_dtype: torch.dtype) -> Shipped:
    q, _, _ = scored.heads(DECODE_ROWS)
    tables = tensor(DECODE_ROWS, CONTEXT // BLOCK_SIZE, dtype=torch.int32)
    keys = min(CONTEXT, scored.window or CONTEXT)  # of each sequence; beyond the window none is read
    return Shipped(
        operation=ops.paged_decode,
        configuration=f"{scored.words}, {DECODE_ROWS} x {CONTEXT} tokens, cache {word(cache_dtype)}",
        args=(q, scored.cache(DECODE_ROWS * keys, cache_dtype), tables, tensor(DECODE_ROWS, dtype=torch.int32)),
        options=scored.options,
        flops=attention_flops(scored.model, DECODE_ROWS, 1, CONTEXT, scored.window),
        products=scored.products,
        architectures=architectures_with(scored.dtype, cache_dtype),
    )


def architectures_with(dtype: torch.dtype, cache_dtype: torch.dtype | None = None) -> tuple[int, ...]:
    """Where a call is compiled: float8_e4m3fn came with sm_89, on sm_100 bfloat16 is enough to wait for."""
    first = 89 if cache_dtype == torch.float8_e4m3fn else 80
    return tuple(arch for arch in EVERY_ARCHITECTURE if first <= arch and (dtype == BF16 or arch < 100))
