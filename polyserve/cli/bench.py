"""`polyserve bench`: the measurements of `polyserve_benchmarks`. The last line of output is one JSON document."""

import asyncio

import click

from polyserve.cli.options import Flags, SectionedCommand, flags_of
from polyserve.config import EngineConfig
from polyserve_benchmarks.workload import Workload


@click.group()
def bench() -> None:
    """Measure a model on this machine."""


@bench.command(cls=SectionedCommand)
@flags_of(Workload, "workload", section="Workload")
@flags_of(EngineConfig, "engine", argument="model", section="Engine")
def throughput(engine: Flags[EngineConfig], workload: Flags[Workload]) -> None:
    """Tokens a second, time to first token, and how near that is to what the memory allows."""
    engine_config, asked = engine.build(), workload.build()

    from polyserve.log import set_up_logging
    from polyserve_benchmarks.throughput import run

    set_up_logging("warning")
    asyncio.run(run(engine_config, asked))
