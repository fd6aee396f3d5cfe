"""How threads of OpenMP, which torch computes with, wait for each other: asleep, unless the user has said otherwise.

Those that spin take a core from whoever has work: the threads of our own kernels (on two cores a step of training took
1.2 times as long), the front, a neighbour (beside busy ones a step of SmolLM2 took 7 times as long). OpenMP reads it
when torch is imported.
"""

import os

ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def let_threads_sleep() -> None:
    """In this process. Call it before anything imports torch."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
