"""The front's check of grammars, before a request that has one is tokenised or sent to the engine.

Each is tried in one of a few processes (`grammar_process`), so that one that never ends, or eats all memory, costs its
limit and a new process, and disturbs nobody. Verdicts are remembered. What passes is compiled again by the engine, in
about the time it took here.
"""

import asyncio
import contextlib
import hashlib
import signal
import sys
from collections import OrderedDict
from dataclasses import replace

import msgspec

from polyserve.errors import InternalError, InvalidRequest, Overloaded
from polyserve.log import get_logger
from polyserve.sampling_params import SamplingParams
from polyserve.service.messages import Verdict

log = get_logger(__name__)

NUM_PROCESSES = 2
MAX_WAITING = 256  # grammars that wait to be tried
MAX_REMEMBERED = 1024  # verdicts
LAST_MOMENTS_S = 1.0  # that a process which says nothing more may take to end by itself, so that its end says why
PATIENCE = 20  # times the limit that an answer may take: on a busy machine a process gets little time


class GrammarChecker:
    """Starts its processes when they are first needed."""

    def __init__(self, *, limit_ms: int) -> None:
        self._limit_ms = limit_ms
        self._idle: asyncio.LifoQueue[_Trier | None] = asyncio.LifoQueue()
        for _ in range(NUM_PROCESSES):
            self._idle.put_nowait(None)
        self._triers: set[_Trier] = set()
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()  # by digest; the one asked for last is the last
        self._num_waiting = 0

    async def check(self, params: SamplingParams) -> None:
        """Raise InvalidRequest, naming the field, if `params` hold a grammar that cannot be followed within limits."""
        field = params.grammar_field
        if field is None:
            return
        trial = msgspec.json.encode(replace(SamplingParams(), **{field: getattr(params, field)}))
        digest = hashlib.blake2b(trial, digest_size=16).digest()
        verdict = self._verdicts.get(digest)
        if verdict is None:
            # Goes on if the client leaves: an answer that nobody took would be the next one's.
            verdict = await asyncio.shield(self._try(field, trial))
            self._verdicts[digest] = verdict
            if len(self._verdicts) > MAX_REMEMBERED:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(digest)
        if verdict.message is not None:
            raise InvalidRequest(verdict.message, param=field)

    async def close(self) -> None:
        """End the processes."""
        for trier in list(self._triers):
            await trier.end()

    async def _try(self, field: str, trial: bytes) -> Verdict:
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} grammars wait to be compiled; try again later", param=field)
        self._num_waiting += 1
        try:
            trier = await self._idle.get()
        finally:
            self._num_waiting -= 1
        try:
            if trier is None:
                trier = await _Trier.start(self._limit_ms)
                self._triers.add(trier)
            line = await trier.ask(trial, timeout_s=self._limit_ms / 1000 * PATIENCE)
            if line is not None:
                return msgspec.json.decode(line, type=Verdict)
            self._triers.discard(trier)
            how = await trier.end(within_s=LAST_MOMENTS_S)
            trier = None
        finally:
            self._idle.put_nowait(trier)
        return self._verdict_of_death(field, how)

    def _verdict_of_death(self, field: str, code: int) -> Verdict:
        """What is wrong with a grammar that ended the process which tried it."""
        if -code in (signal.SIGPROF, signal.SIGKILL):
            return Verdict(f"{field} takes more than {self._limit_ms} ms to compile")
        if -code in (signal.SIGABRT, signal.SIGSEGV):
            return Verdict(f"{field} takes more memory to compile than a grammar may have")
        log.error("a process that tries grammars ended with code %d", code)
        raise InternalError("the grammar could not be checked")


class _Trier:
    """One process that tries grammars."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, limit_ms: int) -> "_Trier":
        command = (sys.executable, "-P", "-m", "polyserve.service.grammar_process", str(limit_ms))
        return cls(
            await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # where it dies of a grammar, its last words are no news
                start_new_session=True,
            )
        )

    async def ask(self, trial: bytes, *, timeout_s: float) -> bytes | None:
        """The answer to a trial; None if there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._process.stdin.write(trial + b"\n")
            async with asyncio.timeout(timeout_s):
                return await self._process.stdout.readline() or None
        return None

    async def end(self, *, within_s: float = 0.0) -> int:
        """End the process if it has not ended by itself. Returns its code, negative for a signal."""
        with contextlib.suppress(TimeoutError):
            # One that is killed while it ends is waited for by two, and asyncio loses its code.
            return await asyncio.wait_for(self._process.wait(), within_s)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self._process.wait()
