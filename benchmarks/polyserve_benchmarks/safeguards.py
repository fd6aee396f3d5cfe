"""What journal, supervision, admission and metrics cost: `python -m polyserve_benchmarks.safeguards`.

Two servers of one model run side by side: `polyserve serve` as it is, and the same without them. They answer the same
requests in turn, another one first each round; a figure is the median over rounds, a ratio the median of the rounds'
ratios, a difference that of their differences. What the engine does for them stays in both: it tells which requests a
step holds before it computes it, two writes to shared memory.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

from polyserve.api.metrics import Metrics, Record
from polyserve.errors import EngineDead, PolyServeError
from polyserve.request import Request, SequenceOutput
from polyserve.sampling_params import SamplingParams
from polyserve.service.admission import Admission, Ticket, _Tenant
from polyserve.service.async_llm import ChoiceDelta
from polyserve.service.journal import Journal
from polyserve.service.supervisor import Supervisor
from polyserve_benchmarks.machine import machine, versions
from polyserve_benchmarks.serve.clients import connected
from polyserve_benchmarks.serve.load import Asked, Load, requests_of
from polyserve_benchmarks.server import started

BARE = (
    sys.executable,
    "-c",
    "import sys; from polyserve.cli.main import main; from polyserve_benchmarks.safeguards import without\n"
    "with without(): sys.exit(main())",
)


class _NoJournal(Journal):
    def open(self, request: Request) -> None:
        pass

    def record(self, output: SequenceOutput) -> bool:  # noqa: ARG002
        return True

    def close(self, request_id: str, choice: int | None = None) -> None:
        pass


class _NoAdmission(Admission):
    _nobody = _Tenant()

    def check_room(self) -> None:
        pass

    def reserve(self, prompt_len: int, params: SamplingParams, **_: object) -> Ticket:
        return Ticket(0, self._nobody, 0, prompt_len, 0, params.n, 0, set(range(params.n)))

    def enter(self, ticket: Ticket, send: Callable[[], None]) -> None:
        ticket.started = True
        send()

    def took(self, ticket: Ticket) -> None:
        pass

    def charge(self, ticket: Ticket, **_: object) -> None:
        pass

    def choice_ended(self, ticket: Ticket, choice: int) -> None:
        ticket.open_choices.discard(choice)  # else the engine is told that a client has left

    def close(self, ticket: Ticket) -> None:
        pass


class _NoRecord(Record):
    def delta(self, delta: ChoiceDelta) -> None:
        pass

    def vector(self) -> None:
        pass


class _NoMetrics(Metrics):
    @contextmanager
    def refusals(self) -> Iterator[None]:
        yield

    @contextmanager
    def request(self, arrived: float, prompt: str | None, ticket: Ticket, num_choices: int) -> Iterator[Record]:  # noqa: ARG002
        yield _NoRecord(self, arrived, ticket, num_choices)

    async def watch_loop(self) -> None:
        pass


async def _unwatched(supervisor: Supervisor) -> EngineDead:
    return await supervisor._engine.died()


@contextmanager
def without() -> Iterator[None]:
    """Servers that start inside have nothing of what is measured."""
    with (
        mock.patch("polyserve.service.supervisor.Journal", _NoJournal),
        mock.patch("polyserve.service.async_llm.Admission", _NoAdmission),
        mock.patch("polyserve.api.frontend.Metrics", _NoMetrics),
        mock.patch.object(Supervisor, "_down", _unwatched),
    ):
        yield


@dataclass(frozen=True, slots=True)
class Round:
    """Of one server."""

    tokens_per_s: float
    ttft_ms: float  # the median over requests that are alone


async def measure(base_url: str, asked: list[Asked], *, num_alone: int) -> Round:
    """All requests at once; then some one after another."""
    async with connected(Load(base_url=base_url)) as client:
        model = await client.model()
        began = time.perf_counter()
        answers = await asyncio.gather(*(client.ask(one, model) for one in asked))
        elapsed = time.perf_counter() - began
        alone = [await client.ask(Asked(one.prompt, 1), model) for one in asked[:num_alone]]
    if errors := [answer.error for answer in answers + alone if answer.error]:
        raise PolyServeError(f"a request failed: {errors[0][:300]}")
    tokens = sum(answer.output_tokens for answer in answers)
    return Round(tokens / elapsed, 1e3 * statistics.median(answer.ttft for answer in alone))


def run(model: str, *, num_streams: int, num_words: int, num_tokens: int, rounds: int) -> dict[str, Any]:
    """Measure in turn; print a line for each round and, last, one JSON document; return it."""
    measured: dict[str, list[Round]] = {"whole": [], "bare": []}
    server = (model, "--max-num-seqs", str(num_streams))
    with started(*server) as whole, started(*server, polyserve=BARE) as bare:
        urls = {"whole": whole, "bare": bare}
        load = Load(num_prompts=num_streams, random_input_len=num_words, random_output_len=num_tokens)
        for number in range(-1, rounds):  # the first is not counted
            asked = requests_of(load, salt=number)
            for name in sorted(urls, reverse=number % 2 == 0):
                found = asyncio.run(measure(urls[name], asked, num_alone=8))
                if number >= 0:
                    measured[name].append(found)
                    print(f"{name:6}{found.tokens_per_s:8.1f} tokens/s{found.ttft_ms:8.2f} ms", flush=True)
    pairs = list(zip(measured["whole"], measured["bare"], strict=True))
    document = {
        "benchmark": "safeguards",
        "model": model,
        "num_streams": num_streams,
        "num_words": num_words,
        "num_tokens": num_tokens,
        "throughput_ratio": statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs),
        "ttft_difference_ms": statistics.median(a.ttft_ms - b.ttft_ms for a, b in pairs),
        "rounds": {name: [asdict(one) for one in found] for name, found in measured.items()},
        "versions": versions(),
        "machine": machine(),
    }
    print(json.dumps(document))
    return document


def main() -> None:
    parser = argparse.ArgumentParser(prog="polyserve_benchmarks.safeguards", description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--num-streams", type=int, default=32)
    parser.add_argument("--num-words", type=int, default=32, help="of each prompt")
    parser.add_argument("--num-tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=28)
    run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
