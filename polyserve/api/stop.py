"""How a server ends: events that signals set, work that gives way to them, and what the process then returns."""

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

EXIT_STOPPED = 0
EXIT_FAILED = 1

Result = TypeVar("Result")


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of the work; None, and the work is cancelled, if `stop` is set first."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Stop:
    """Whether the server is to end, after what runs has finished (`asked`) or at once (`hurried`)."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    hurried: asyncio.Event = field(default_factory=asyncio.Event)

    def ask(self) -> None:
        """Whoever asks twice is in a hurry."""
        if self.asked.is_set():
            self.hurried.set()
        self.asked.set()


@contextmanager
def told_to_stop(stop: Stop) -> Iterator[None]:
    """Ask at SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop.ask)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
