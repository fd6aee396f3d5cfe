"""What SIGHUP reads again, without a pause for anybody: the level of the log, and whatever else is given."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polyserve.config import LOG_LEVELS
from polyserve.errors import SettingsError
from polyserve.log import get_logger

log = get_logger(__name__)


@contextmanager
def reloading_at_hangup(*reloads: Callable[[], None]) -> Iterator[None]:
    """At SIGHUP call each. One that raises SettingsError is logged, and leaves things as they were."""

    def reload_all() -> None:
        for reload in reloads:
            try:
                reload()
            except SettingsError as error:
                log.error("not reloaded: %s", error)
        log.info("reloaded at SIGHUP")

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload_all)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def read_log_level(file: Path) -> str:
    """The level that stands in a file. Raises SettingsError."""
    try:
        level = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: cannot be read: {error}") from error
    if level not in LOG_LEVELS:
        raise SettingsError(f"{file}: must hold one of {', '.join(LOG_LEVELS)}, got {level[:20]!r}")
    return level
