"""`polyserve bench`: the measurements of `polyserve_benchmarks`. The last line of output is one JSON document."""

import asyncio

import click

from polyserve.cli.options import Flags, SectionedCommand, flags_of
from polyserve.config import EngineConfig
from polyserve_benchmarks.compare.plan import Comparison
from polyserve_benchmarks.serve.load import Load
from polyserve_benchmarks.start import Starts
from polyserve_benchmarks.steps import Steps
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


@bench.command(cls=SectionedCommand)
@flags_of(Workload, "workload", section="Workload", defaults={"num_streams": [1, 32]})
@flags_of(Comparison, "comparison", section="Comparison")
def compare(comparison: Flags[Comparison], workload: Flags[Workload]) -> None:
    """PolyServe and other engines in turn, on the same prompts, threads and precision.

    benchmarks/peers.sh installs the others; one that is missing or fails is named and left out.
    """
    asked, its_workload = comparison.build(), workload.build()

    from polyserve_benchmarks.compare.process import EngineFailed
    from polyserve_benchmarks.compare.run import run

    try:
        run(asked, its_workload)
    except EngineFailed as error:
        raise click.ClickException(str(error)) from error


@bench.command(cls=SectionedCommand)
@flags_of(Steps, "asked", section="Steps")
@flags_of(EngineConfig, "engine", argument="model", skip=("max_num_seqs", "enable_prefix_caching"), section="Engine")
def steps(engine: Flags[EngineConfig], asked: Flags[Steps]) -> None:
    """What a step costs by streams and context, next to what its bytes and operations predict."""
    engine_config, which = engine.build(), asked.build()

    from polyserve.log import set_up_logging
    from polyserve_benchmarks.steps import run

    set_up_logging("warning")
    asyncio.run(run(engine_config, which))


@bench.command(cls=SectionedCommand)
@flags_of(Starts, "starts", argument="model")
def start(starts: Flags[Starts]) -> None:
    """Seconds from the start of a server to its first token over HTTP."""
    asked = starts.build()

    from polyserve_benchmarks.start import run

    run(asked)


@bench.command(cls=SectionedCommand)
@flags_of(Load, "load")
def serve(load: Flags[Load]) -> None:
    """Latency and throughput of a running server under load, in the table and the names of vLLM's bench serve."""
    asked = load.build()

    from polyserve_benchmarks.serve.run import run

    asyncio.run(run(asked))
