"""Tries grammars in a process of its own, which may die of one: `python -m polyserve.service.grammar_process LIMIT_MS`.

Standard input has SamplingParams with a grammar, one a line, standard output answers with one `Verdict` a line, both
JSON; the process ends when its input does. A grammar gets LIMIT_MS of this process's time and MAX_BYTES of memory:
beyond that the system ends the process. It compiles over an alphabet of 256 bytes, so that a new process is ready soon.
"""

import os
import resource
import signal
import sys

import msgspec

from polyserve.engine.grammar import byte_tokenizer, compile_grammar
from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams
from polyserve.service.messages import Verdict

MAX_BYTES = 2**29  # above what the process has at its start
STACK_BYTES = 2**22  # less than the engine's threads have, so that no nesting that passes here ends the engine
NICENESS = 5  # the engine and the front go first


def main(limit_s: float) -> None:
    """Answer trials until there are no more."""
    os.nice(NICENESS)
    tokenizer = byte_tokenizer()
    _limit_memory()
    for line in sys.stdin.buffer:
        params = msgspec.json.decode(line, type=SamplingParams)
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # counts this process's time; at its end SIGPROF kills
        try:
            compile_grammar(params, tokenizer)
            verdict = Verdict()
        except InvalidRequest as error:
            verdict = Verdict(error.message)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
        sys.stdout.buffer.flush()


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MAX_BYTES, now + MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(int(sys.argv[1]) / 1000)
