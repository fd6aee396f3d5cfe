"""Scoring a prompt takes memory that does not grow with the prompt's length times the vocabulary.

python -m pytest -s tests/engine/test_scoring_memory.py        prints what was measured
"""

import re
from pathlib import Path

from support.engine_runs import make_engine, make_request
from support.tiny_decoder import tiny_config, tiny_decoder

VOCAB_SIZE = 256_000
LENGTH = 2048
PROCESS = Path("/proc/self")


def resident_bytes(field: str) -> int:
    """VmRSS: the process's memory now; VmHWM: the most since it was last asked to forget."""
    match = re.search(rf"{field}:\s+(\d+) kB", (PROCESS / "status").read_text())
    assert match is not None
    return 1024 * int(match[1])


def test_2048_tokens_of_a_vocabulary_of_256000_with_20_alternatives_take_less_than_50_mb():
    engine = make_engine(tiny_decoder(config=tiny_config(vocab_size=VOCAB_SIZE, max_len=LENGTH)))
    prompt = [7919 * i % VOCAB_SIZE for i in range(LENGTH)]
    found = []

    def score(name: str, length: int) -> None:
        engine.add(make_request(name, prompt[:length], max_tokens=0, prompt_logprobs=20))
        while engine.has_work():
            found.extend(engine.step())

    score("short", 8)  # what is made once and stays
    (PROCESS / "clear_refs").write_text("5")
    before = resident_bytes("VmRSS")
    score("whole", LENGTH)
    num_bytes = resident_bytes("VmHWM") - before
    print(f"\n{num_bytes / 1e6:.1f} MB above the model; the logits would be {4 * LENGTH * VOCAB_SIZE / 1e6:.0f} MB")
    assert len(found[-1].prompt_logprobs) == LENGTH
    assert num_bytes < 50e6
