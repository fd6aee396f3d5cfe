"""The engine process that comes after the present one: it waits with everything imported, so that a restart only loads.

Importing torch takes most of a restart of a small model. A spare holds some 150 MB of memory of its own and no model.
"""

from collections.abc import Sequence

from polyserve.log import get_logger
from polyserve.service.engine_process import EngineProcess

log = get_logger(__name__)


class Spare:
    """At most one process, if one is wanted."""

    def __init__(self, command: Sequence[str], *, wanted: bool) -> None:
        self._command, self._wanted = command, wanted
        self._process: EngineProcess | None = None

    async def prepare(self) -> None:
        """Have one, from now on. That there is none delays a restart, and nothing else."""
        if not self._wanted or self._process is not None:
            return
        try:
            self._process = await EngineProcess.start(self._command, spare=True)
        except OSError as error:
            log.warning("there is no spare engine process: %s", error.strerror)

    async def take(self) -> EngineProcess:
        """It, or a new process; the caller's from now on."""
        process, self._process = self._process, None
        if process is not None:
            if process.alive:
                return process
            await process.close()
        return await EngineProcess.start(self._command)

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.close()
