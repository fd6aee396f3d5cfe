"""One engine for as long as the server lives, whichever process it is at the moment.

    dies, or is silent too long -> judged (suspects.py) -> started again -> every live request goes on (journal.py)

While there is no engine, requests wait in the journal: their clients see a pause. A request that is found to kill the
engine is given up. An engine that dies again and again although nothing is left to blame ends the server.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from polyserve.config import EngineConfig
from polyserve.errors import EngineDead, ModelLoadError
from polyserve.log import get_logger
from polyserve.model.weights.resolve import resolve
from polyserve.request import SequenceOutput
from polyserve.service.engine_forks import EngineForks
from polyserve.service.engine_process import COMMAND, EngineProcess
from polyserve.service.journal import Entry, Journal
from polyserve.service.messages import Abort, Add, Outputs, Ready, SetLogLevel
from polyserve.service.suspects import judge, release

log = get_logger(__name__)

STEP_TIMEOUT_S = 60.0
STABLE_S = 60.0  # an engine that lived so long was well, even if nobody asked anything of it
MAX_FRUITLESS = 10  # deaths in a row that brought neither a token nor a narrower suspicion: then it is hopeless
MAX_PATIENCE = 8  # an engine that was taken for stuck may have been slow: each time it gets twice as long, up to this
LOAD_PATIENCE = 10  # an engine that loads again is stuck after so many times what the first one took
GIVEN_UP = "the engine ended each time it computed this request; it is given up"


class Supervisor:
    """Made by `start`. `num_restarts` counts since the start."""

    def __init__(
        self,
        engine: EngineProcess,
        config: EngineConfig,
        command: Sequence[str],
        *,
        step_timeout_s: float,
        fork_server: bool = False,
    ) -> None:
        self._engine = engine
        self.config = config
        self._forks = EngineForks(command, wanted=fork_server)
        self._step_timeout_s = step_timeout_s
        self._patience = 1  # times the timeout
        self._longest_silence_s = 0.0  # of this process
        self._stuck = False  # the process that died last
        self._journal = Journal()
        self._deliver: Callable[[Outputs], None] | None = None
        self._ready: Ready | None = None
        self._running = True  # false between a death and the restart
        self._holding = False  # whether requests are held back
        self._began = time.monotonic()
        self._load_timeout_s = step_timeout_s  # at least
        self._fruitful = False  # whether this process has brought anything
        self._num_fruitless = 0
        self.num_restarts = 0

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        command: Sequence[str] = COMMAND,
        *,
        step_timeout_s: float = STEP_TIMEOUT_S,
        fork_server: bool = False,
    ) -> tuple["Supervisor", Path]:
        """An engine process that has begun to load a model, and where the model is. Raises ModelLoadError.

        command: what is run as the engine process.  step_timeout_s: an engine that is silent for longer is stuck.
        fork_server: whether later ones are forked from a process that has imported everything.
        """
        engine = await EngineProcess.start(command)
        try:
            path = await asyncio.to_thread(resolve, config.model)
            config = replace(config, model=str(path))
            engine.load(config)
        except BaseException:
            await engine.close()
            raise
        return cls(engine, config, command, step_timeout_s=step_timeout_s, fork_server=fork_server), path

    @property
    def pid(self) -> int:
        """Of the process at the moment."""
        return self._engine.pid

    @property
    def progressing(self) -> bool:
        """Whether there is an engine that has answered recently."""
        return self._running and self._engine.silent_s() < self._step_timeout_s / 2

    async def ready(self) -> Ready:
        """Wait until it has loaded. Raises what it says went wrong, or EngineDead."""
        self._ready = await self._engine.ready()
        self._load_timeout_s = max(self._step_timeout_s, LOAD_PATIENCE * (time.monotonic() - self._began))
        return self._ready

    def listen(self, deliver: Callable[[Outputs], None]) -> None:
        """From now on, call `deliver` on the event loop with what each turn brings."""
        self._deliver = deliver
        self._engine.listen(self._take)

    def set_log_level(self, level: str) -> None:
        """Let the engine log from this level on, as this process does."""
        if self._running:
            self._engine.send(SetLogLevel(level))

    def send(self, message: Add | Abort) -> None:
        """Pass a message on to the engine of now, or to the next one."""
        if isinstance(message, Add):
            self._journal.open(message.request)
        else:
            self._journal.close(message.request_id, message.choice)
            self._release()
        if self._running:
            self._engine.send(message)

    async def supervise(self) -> EngineDead:
        """Start the engine again whenever it ends, until that is hopeless. Returns why."""
        while True:
            await self._forks.prepare()
            death = await self._down()
            self._running = False
            log.error("%s with %d requests in it", death.message, len(self._journal))
            self._blame(none=self._engine.killed_from_outside and not self._stuck)
            if self._num_fruitless >= MAX_FRUITLESS:
                return EngineDead(f"{death.message}, {MAX_FRUITLESS} times in a row without bringing anything")
            try:
                await self._restart()
            except ModelLoadError as error:
                return EngineDead(f"{death.message} and cannot be started again: {error.message}")
            except EngineDead:
                continue  # `_down` sees the same death

    async def close(self) -> None:
        """End the engine process, and what others would be forked from."""
        await asyncio.gather(self._engine.close(), self._forks.close())

    # ---- watching ----

    async def _down(self) -> EngineDead:
        """Wait until the process has ended, or end it because it is stuck."""
        death = asyncio.create_task(self._engine.died())
        interval_s = min(1.0, self._step_timeout_s / 8)
        try:
            while True:
                began = time.monotonic()
                if (await asyncio.wait((death,), timeout=interval_s))[0]:
                    return death.result()
                silent_s = self._engine.silent_s()
                self._longest_silence_s = max(self._longest_silence_s, silent_s)
                spoke_after_s = time.monotonic() - silent_s - self._began
                if spoke_after_s > STABLE_S and self._longest_silence_s < self._step_timeout_s:
                    self._patience = 1  # this one is not slow
                here = time.monotonic() - began < 2 * interval_s  # else this process slept, and has not asked
                if here and silent_s > self._step_timeout_s * self._patience:
                    self._stuck = True
                    self._patience = min(2 * self._patience, MAX_PATIENCE)
                    return await self._end_stuck(f"was silent for {silent_s:.1f} s")
                if silent_s > interval_s:
                    self._engine.ask()
        finally:
            death.cancel()

    async def _end_stuck(self, symptom: str) -> EngineDead:
        log.error("the engine %s: its stacks follow, then it is ended", symptom)
        await self._engine.kill()
        return EngineDead(f"the engine was stuck: it {symptom}")

    def _take(self, step: Outputs) -> None:
        """Note what a turn brought, and hand on what belongs to a live request."""
        assert self._deliver is not None
        outputs = [output for output in step.outputs if self._journal.record(output)]
        self._fruitful = self._fruitful or bool(outputs)
        for refusal in step.refusals:
            self._journal.close(refusal.request_id)
        self._deliver(Outputs(outputs, step.refusals, step.stats))
        self._release()

    # ---- between two processes ----

    def _blame(self, *, none: bool) -> None:
        """Judge the death, if anybody is to blame for it. The culprit's client is told."""
        if self._fruitful or time.monotonic() - self._began > STABLE_S:
            self._num_fruitless = 0
        if none:
            self._num_fruitless += 1
            return
        culprit, narrowed = judge(self._journal, self._engine.last_step())
        self._holding = any(entry.held for entry in self._journal)
        if culprit is not None:
            log.error("request %s ends the engine; it is given up", culprit.request.request_id)
            self._give_up(culprit)
        if culprit is not None or not narrowed:
            self._num_fruitless += 1

    def _give_up(self, culprit: Entry) -> None:
        assert self._deliver is not None
        assert self._ready is not None
        request_id = culprit.request.request_id
        outputs = [
            SequenceOutput(request_id, choice, [], finish_reason="error", error=GIVEN_UP) for choice in culprit.answered
        ]
        self._journal.close(request_id)
        self._deliver(Outputs(outputs, [], self._ready.stats))

    async def _restart(self) -> None:
        """Start another process, and send it what is live. Raises ModelLoadError, or EngineDead if it ends as well."""
        await self._engine.close()
        self._engine = await self._forks.take()
        self._engine.listen(self._take)
        self._engine.load(self.config)
        self._began, self._longest_silence_s = time.monotonic(), 0.0
        self._fruitful = self._stuck = False
        self.num_restarts += 1
        try:
            ready = await asyncio.wait_for(self._engine.ready(), self._load_timeout_s)
        except TimeoutError:
            raise await self._end_stuck(f"was not loaded after {self._load_timeout_s:.1f} s") from None
        assert self._ready is not None
        if ready.numerics_id != self._ready.numerics_id:
            raise ModelLoadError(f"it computes as {ready.numerics_id} now, not as {self._ready.numerics_id}")
        self._running = True
        going_on = [entry for entry in self._journal if not entry.held]
        log.warning("the engine was started again; %d requests go on", len(going_on))
        self._resume(going_on)

    def _release(self) -> None:
        """Let requests go on that were held back, once those before them have shown that they do no harm."""
        if self._running and self._holding:
            self._resume(release(self._journal))
            self._holding = any(entry.held for entry in self._journal)

    def _resume(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._engine.send(Add(entry.continuation()))
