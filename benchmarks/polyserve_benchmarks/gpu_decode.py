"""Decode PolyLM-13B's shape with random weights at 1, 8 and 32 streams, as a part of `gpu.py`.

    python -m polyserve_benchmarks.gpu_decode RESULTS
Through `LLM`, as anybody would call it. Weights are written to a temporary folder (26 GB) first.
step      time of an answer's tokens after the first, over their number: a long answer's time less a short one's
limit     bytes of weights, and of keys and values at half the answer, over the bandwidth of a copy in the same run
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from polyserve.config import EngineConfig
from polyserve.llm import LLM
from polyserve.model.config import ModelConfig
from polyserve.model.families import read_config
from polyserve.model.weights.resolve import resolve
from polyserve.sampling_params import SamplingParams
from polyserve_benchmarks.compare.cost import float_bytes
from polyserve_benchmarks.gpu_timing import Timer, measure_copy
from polyserve_benchmarks.make_polylm import Shape, write_checkpoint
from polyserve_benchmarks.workload import random_prompts

POLYLM_13B = Shape(layers=40, hidden_size=5120, heads=40, vocab_size=256_000)
STREAMS = (1, 8, 32)
INPUT_LEN, OUTPUT_LEN = 128, 128


@dataclass(frozen=True, slots=True)
class Decoded:
    num_streams: int
    step_ms: float
    tokens_per_second: float
    gigabytes_per_second: float
    percent_of_limit: float


def main() -> None:
    results = Path(sys.argv[1])
    bandwidth = measure_copy(Timer())
    with tempfile.TemporaryDirectory() as folder, results.open("a", encoding="utf-8") as file:
        write_checkpoint(Path(folder), POLYLM_13B, repeat=True)
        for decoded in decode(Path(folder), bandwidth, device="cuda"):
            print(
                f"PolyLM-13B shape, {decoded.num_streams:2d} streams: {decoded.step_ms:.2f} ms a step, "
                f"{decoded.tokens_per_second:.0f} tokens/s, {decoded.gigabytes_per_second:.0f} GB/s, "
                f"{decoded.percent_of_limit:.0f} % of the limit",
                flush=True,
            )
            file.write(json.dumps(asdict(decoded)) + "\n")
            file.flush()


def decode(
    folder: Path, bandwidth: float, *, device: str, streams: tuple[int, ...] = STREAMS, output_len: int = OUTPUT_LEN
) -> Iterator[Decoded]:
    """Measure each number of streams, after answers of the same shape, which compile and record what they need."""
    config = EngineConfig(model=str(folder), device=device, max_num_seqs=max(streams), enable_prefix_caching=False)
    llm = LLM(config=config)
    model = read_config(resolve(str(folder)))
    weight_bytes = float_bytes(model, config.dtype)
    for count in streams:
        _seconds(llm, count, model, output_len, seed=0)
        short, long = (_seconds(llm, count, model, length, seed=1) for length in (1, output_len))
        step = (long - short) / (output_len - 1)
        num_bytes = weight_bytes + count * _bytes_per_token(model) * (INPUT_LEN + output_len // 2)
        yield Decoded(
            num_streams=count,
            step_ms=1e3 * step,
            tokens_per_second=count / step,
            gigabytes_per_second=num_bytes / step / 1e9,
            percent_of_limit=100 * num_bytes / step / bandwidth,
        )


def _seconds(llm: LLM, count: int, model: ModelConfig, output_len: int, *, seed: int) -> float:
    prompts = random_prompts(count, length=INPUT_LEN, vocab_size=model.vocab_size, seed=seed)
    start = time.perf_counter()
    llm.generate(prompts, SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True), use_tqdm=False)
    return time.perf_counter() - start


def _bytes_per_token(model: ModelConfig) -> int:
    """Of keys and values of all layers, in bfloat16."""
    return 2 * 2 * model.num_layers * model.num_kv_heads * model.head_size


if __name__ == "__main__":
    main()
