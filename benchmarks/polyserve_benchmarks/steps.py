"""What a step of decoding costs, by streams and context, next to what its bytes and its operations predict.

step       median time between two tokens of a stream while every stream generates, after `context` tokens each
bytes      weights once, and each stream's keys and values, over the memory bandwidth measured in this run
operations two for each weight and stream, and those of attention, over the rate of torch's own products in this run
predicted  the longer of the two: at best one hides behind the other
Every stream has a prompt of its own, and so its own keys and values. Cells whose prompts together are longer than
`max_prompt_tokens`, or that the model does not take, are left out.
"""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from polyserve.config import EngineConfig, option
from polyserve.errors import InvalidRequest, PolyServeError
from polyserve_benchmarks.compare.plan import Run
from polyserve_benchmarks.machine import machine, matrix_rate, num_cores, read_bandwidth, versions
from polyserve_benchmarks.throughput import answer_all, step_times
from polyserve_benchmarks.workload import random_prompts

if TYPE_CHECKING:
    from polyserve.model.config import ModelConfig
    from polyserve.service.async_llm import AsyncLLM

WARM_UP = Run(1, 16, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Which steps `polyserve bench steps` measures."""

    num_streams: list[int] = option([1, 2, 4, 8, 16, 32, 64], "sequences that decode together")
    contexts: list[int] = option([128, 512, 2048, 8192], "tokens before the first step that counts")
    num_steps: int = option(16, "steps of each cell")
    max_prompt_tokens: int = option(16384, "longest prompts of a cell, all streams together; longer ones are left out")

    def __post_init__(self) -> None:
        for name in ("num_steps", "max_prompt_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_streams", "contexts"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {min(getattr(self, name))}")


@dataclass(frozen=True, slots=True)
class Prices:
    """What a model's step needs, and what the machine gives."""

    config: "ModelConfig"
    kv_dtype: str
    weight_bytes: int
    weight_flops: int  # of one token, the head included
    bytes_per_second: float
    flops_per_second: float

    def bytes_ms(self, streams: int, context: int) -> float:
        from polyserve_benchmarks.compare.cost import kv_bytes_read

        total = self.weight_bytes + streams * kv_bytes_read(self.config, context, self.kv_dtype)
        return 1e3 * total / self.bytes_per_second

    def operations_ms(self, streams: int, context: int) -> float:
        from polyserve_benchmarks.compare.cost import attention_flops

        total = streams * (self.weight_flops + attention_flops(self.config, context))
        return 1e3 * total / self.flops_per_second


@dataclass(frozen=True, slots=True)
class Cell:
    num_streams: int
    context: int
    step_ms: float
    bytes_ms: float
    operations_ms: float

    @property
    def predicted_ms(self) -> float:
        return max(self.bytes_ms, self.operations_ms)


async def run(config: EngineConfig, steps: Steps) -> None:
    """Measure each cell; print a line for each and, last, one JSON document. Raises InvalidRequest if there is none."""
    from polyserve.model.families import read_config
    from polyserve.model.weights.resolve import resolve
    from polyserve.service.async_llm import AsyncLLM
    from polyserve_benchmarks.compare.cost import kv_bytes

    path = resolve(config.model)
    model = read_config(path)
    cells = list(planned(steps, config.max_model_len or model.max_len, config.max_num_batched_tokens))
    if not cells:
        raise InvalidRequest("no context fits the model and max_prompt_tokens")
    held = [replace(cell, num_tokens=cell.num_tokens + 1 + config.block_size) for cell in (WARM_UP, *cells)]
    config = replace(
        config,
        max_num_seqs=max(cell.num_streams for cell in cells),
        enable_prefix_caching=False,
        kv_cache_memory_bytes=config.kv_cache_memory_bytes or kv_bytes(path, held, _kv_dtype(config)),
    )
    prices = _prices(path, model, config)
    llm = await AsyncLLM.start(config)
    try:
        await _step_ms(llm, WARM_UP)
        print("streams  context   step ms  bytes ms  operations ms  of the prediction", flush=True)
        measured = []
        for cell in cells:
            step_ms = await _step_ms(llm, cell)
            context = cell.input_len + cell.num_tokens // 2  # halfway through its steps
            by = (prices.bytes_ms(cell.num_streams, context), prices.operations_ms(cell.num_streams, context))
            measured.append(Cell(cell.num_streams, cell.input_len, step_ms, *by))
            print(_row(measured[-1]), flush=True)
    finally:
        await llm.close()
    document = {
        "benchmark": "steps",
        "config": asdict(config),
        "steps": asdict(steps),
        "results": [asdict(cell) | {"predicted_ms": cell.predicted_ms} for cell in measured],
        "weight_bytes_per_step": prices.weight_bytes,
        "weight_flops_per_token": prices.weight_flops,
        "memory_read_bytes_per_second": round(prices.bytes_per_second),
        "matrix_flops_per_second": round(prices.flops_per_second),
        "numerics_id": llm.numerics_id,
        "versions": versions(),
        "machine": machine(),
    }
    print(json.dumps(document))


def planned(steps: Steps, max_model_len: int, max_num_batched_tokens: int) -> Iterator[Run]:
    """The cells. The first stream goes on generating while the prompts of the others are computed, in chunks."""
    for context in steps.contexts:
        for streams in steps.num_streams:
            chunk = max(1, max_num_batched_tokens - streams)
            num_tokens = math.ceil((streams - 1) * context / chunk) + steps.num_steps
            fits = context + num_tokens + 1 <= max_model_len
            if fits and streams * context <= max(steps.max_prompt_tokens, context):
                yield Run(streams, context, num_tokens)


def _prices(path: Path, model: "ModelConfig", config: EngineConfig) -> Prices:
    from polyserve_benchmarks.compare.cost import served_bytes, token_flops

    threads = config.threads or num_cores()
    return Prices(
        config=model,
        kv_dtype=_kv_dtype(config),
        weight_bytes=served_bytes(path, config),
        weight_flops=token_flops(path) + 2 * model.vocab_size * model.hidden_size,
        bytes_per_second=read_bandwidth(threads),
        flops_per_second=matrix_rate(threads),
    )


def _kv_dtype(config: EngineConfig) -> str:
    return config.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype


async def _step_ms(llm: "AsyncLLM", cell: Run) -> float:
    prompts = random_prompts(cell.num_streams, length=cell.input_len, vocab_size=llm.vocab_size, seed=0)
    times = step_times(await answer_all(llm, prompts, cell.num_tokens + 1))
    if not times:
        raise PolyServeError(f"{cell.num_streams} streams never generated all at once: num_steps must be more")
    return 1e3 * statistics.median(times)


def _row(cell: Cell) -> str:
    return (
        f"{cell.num_streams:7d}  {cell.context:7d}  {cell.step_ms:8.2f}  {cell.bytes_ms:8.2f}"
        f"  {cell.operations_ms:13.2f}  {cell.step_ms / cell.predicted_ms:15.2f} x"
    )
