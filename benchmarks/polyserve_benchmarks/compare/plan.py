"""What `polyserve bench compare` is asked: engines, precision, and the runs that make up one round.

stored   the precision that the file has: a GGUF's own blocks, or a folder's bf16
A run is (streams, prompt length, tokens to generate). With one token to generate its time is that of the prompts alone:
prompt tokens/s come from it, and what a longer run takes beyond it is decoding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polyserve.config import option
from polyserve_benchmarks.workload import Workload

PRECISIONS = ("stored", "bf16", "int8", "int4")
_ENGINES = Path(__file__).parent / "engines"
SCRIPTS: Mapping[str, Path] = {
    "polyserve": _ENGINES / "polyserve.py",
    "llama.cpp": _ENGINES / "llama_cpp.py",
    "vllm": _ENGINES / "vllm.py",
    "openvino": _ENGINES / "openvino.py",
    "ctranslate2": _ENGINES / "ctranslate2.py",
}


@dataclass(frozen=True, slots=True, order=True)
class Run:
    num_streams: int
    input_len: int
    num_tokens: int

    @property
    def prompts_alone(self) -> "Run":
        return Run(self.num_streams, self.input_len, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Which engines, on which model, how often."""

    model: str = option(
        "smollm2",
        "a folder, a .gguf file, smollm2, gemma3-270m, a Hugging Face id with @revision, or polylm-1.7b-shape "
        "(random weights, written to the cache folder once: 3.5 GB)",
    )
    engines: str = option(",".join(SCRIPTS), "names between commas; the first one is compared with the others")
    precision: str = option(
        "stored", "of the weights, for every engine; stored: as the model's file has them", choices=PRECISIONS
    )
    prompt_lens: list[int] = option([128, 512], "prompt lengths at which one prompt's processing is timed")
    rounds: int = option(5, "times that every engine does everything; they take turns")
    threads: int | None = option(None, "CPU threads of each engine; default: the cores this process may use")
    peers: str | None = option(None, "folder of the other engines' environments; default: ~/.cache/polyserve/peers")
    timeout_s: int = option(900, "longest wait in seconds for an engine to load or to answer before it is left out")
    out: str | None = option(
        None, "also write the JSON document to this file, for the table that polyserve_benchmarks.compare.table makes"
    )

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in SCRIPTS:
                raise ValueError(f"engines must be among {', '.join(SCRIPTS)}, got {name!r}")
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"engines must be named once each, got {self.engines!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name in ("rounds", "threads", "timeout_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for length in self.prompt_lens:
            if length < 1:
                raise ValueError(f"prompt_lens must be at least 1, got {length}")

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.engines.split(",") if name.strip()]


def runs_of_a_round(comparison: Comparison, workload: Workload) -> list[Run]:
    """Each once, prompts alone first: a run that two figures need is made for both."""
    runs = [Run(1, length, 1) for length in comparison.prompt_lens]
    for count in workload.num_streams:
        whole = Run(count, workload.input_len, workload.output_len)
        runs += [whole.prompts_alone, whole]
    return list(dict.fromkeys(runs))


def longest(runs: list[Run]) -> int:
    """Tokens of the longest sequence."""
    return max(run.input_len + run.num_tokens for run in runs)
