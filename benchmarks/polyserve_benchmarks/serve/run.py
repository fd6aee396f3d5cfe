"""Sends the load to a server that runs, point after point, and tells what came of it."""

import asyncio
import json
import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyserve.errors import PolyServeError
from polyserve_benchmarks.machine import machine, versions
from polyserve_benchmarks.serve.chart import draw
from polyserve_benchmarks.serve.clients import Client, Timed, connected
from polyserve_benchmarks.serve.figures import Point, details, figures, table
from polyserve_benchmarks.serve.load import WORDS, Asked, Load, arrivals, requests_of


async def run(load: Load) -> dict[str, Any]:
    """Measure every point; print a table for each and, last, one JSON document; return it."""
    results, whole = [], []
    async with connected(load) as client:
        model = load.model or await client.model()
        first = await client.ask(Asked(WORDS[0], 1), model)
        if first.error:
            raise PolyServeError(f"the server does not answer: {first.error[:300]}")
        for number, (rate, most) in enumerate(load.points):
            point = await _measure(load, client, model, rate, most, salt=number)
            results.append({**_about(load, model), **figures(load, point)})
            whole.append({**results[-1], **details(point.timed)})
            print(table(load, results[-1]), flush=True)
    if load.plot is not None:
        draw(load, results, Path(load.plot))
    common = {"benchmark": "serve", "load": asdict(load), "versions": versions(), "machine": machine()}
    if load.out is not None:
        Path(load.out).write_text(json.dumps({**common, "results": whole}, ensure_ascii=False))
    document = {**common, **(results[0] if len(results) == 1 else {}), "results": results}
    print(json.dumps(document))
    return document


async def _measure(
    load: Load, client: Client, model: str, rate: float, max_concurrency: int | None, *, salt: int
) -> Point:
    """Send all requests of one point as they are due."""
    gate = nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)
    processor = _processor_seconds(load.front_pid)
    began = time.perf_counter()

    async def send(asked: Asked, due: float) -> Timed:
        await asyncio.sleep(began + due - time.perf_counter())
        async with gate:
            return await client.ask(asked, model)

    sending = [send(*pair) for pair in zip(requests_of(load, salt=salt), arrivals(load, rate), strict=True)]
    timed = await asyncio.gather(*sending)
    duration = time.perf_counter() - began
    spent = None if processor is None else (_processor_seconds(load.front_pid) or 0.0) - processor
    return Point(rate, max_concurrency, duration, list(timed), spent)


def _about(load: Load, model: str) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": load.backend,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": load.num_prompts,
    }


def _processor_seconds(pid: int | None) -> float | None:
    """Of one process, its threads together."""
    if pid is None:
        return None
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
