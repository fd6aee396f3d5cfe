"""The real engine as a process (`COMMAND`), but a step with a prompt that begins with POISON is its last."""

import os
import signal
import sys

from polyserve.config import EngineConfig
from polyserve.engine.engine import Engine
from polyserve.request import Request
from polyserve.service.core_process import load_engine, main

COMMAND = (sys.executable, __file__)
POISON = 7


def load_poisoned(config: EngineConfig) -> Engine:
    engine = load_engine(config)
    add, watch = engine.add, engine.watch
    poisonous: set[str] = set()

    def add_and_look(request: Request) -> None:
        if request.prompt_ids[0] == POISON:
            poisonous.add(request.request_id)
        add(request)

    def watch_and_die(notice) -> None:  # type: ignore[no-untyped-def]
        def die_after(request_ids: set[str]) -> None:
            notice(request_ids)
            if request_ids & poisonous:
                os.kill(os.getpid(), signal.SIGSEGV)

        watch(die_after)

    engine.add, engine.watch = add_and_look, watch_and_die  # type: ignore[method-assign]
    return engine


if __name__ == "__main__":
    sys.exit(main(load_poisoned))
