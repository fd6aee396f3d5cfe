"""Tokens a second of training beside a plain loop of transformers and torch: `python -m polyserve_benchmarks.train`.

Both start from one folder of weights and take the same steps on the same random tokens, in turn, a step each, so that
whatever else the machine does falls on both; a figure is the median over the steps after the first two. Each has a
process of its own, since how threads wait is decided when one starts.

plain   GPT2LMHeadModel as `transformers` makes it, fp32 weights, `torch.autocast` to the precision of products, its own
        loss, clipping, `torch.optim.AdamW` (fused where the precision has it)
ours    `polyserve_training.trainer.Trainer`, in a process as `polyserve train` makes it
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from polyserve.model.fields import Fields
from polyserve.model.hf_families import FAMILIES
from polyserve.openmp import ENVIRONMENT
from polyserve_benchmarks.machine import machine, num_cores, versions
from polyserve_training.config import (
    BatchRecipe,
    ChatRecipe,
    ComputeRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    Stage,
)
from polyserve_training.data.packing import IGNORED, Packed
from polyserve_training.model import Described, build
from polyserve_training.trainer import Trainer

UNTIMED_STEPS = 2
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0

# one step on token ids [rows, context]; returns the loss
Step = Callable[[Tensor], float]


@dataclass(frozen=True, slots=True)
class Workload:
    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    rows: int
    context: int
    steps: int
    dtype: str
    threads: int


def run(workload: Workload) -> dict[str, Any]:
    """Measure both; print a line for each and return the document."""
    torch.manual_seed(0)
    batches = torch.randint(workload.vocab_size, (workload.steps, workload.rows, workload.context))
    with tempfile.TemporaryDirectory() as folder:
        _write_model(workload, folder)
        loops = {"plain": _Loop(_plain, workload, folder, {}), "ours": _Loop(_ours, workload, folder, ENVIRONMENT)}
        for number, batch in enumerate(batches):
            for name in sorted(loops, reverse=number % 2 == 0):
                loops[name].step(batch)
        for loop in loops.values():
            loop.end()
    tokens = workload.rows * workload.context
    rates = {}
    for name, loop in loops.items():
        median = statistics.median(loop.seconds[UNTIMED_STEPS:])
        rates[name] = tokens / median
        print(f"{name:6} {rates[name]:8.0f} tokens/s  {1e3 * median:7.1f} ms a step  "
              f"loss {loop.losses[0]:.4f} to {loop.losses[-1]:.4f}")  # fmt: skip
    print(f"ours / plain {rates['ours'] / rates['plain']:.2f}")
    return {
        "benchmark": "train",
        "workload": asdict(workload),
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio": round(rates["ours"] / rates["plain"], 3),
        "step_seconds": {name: loop.seconds for name, loop in loops.items()},
        "losses": {name: loop.losses for name, loop in loops.items()},
        "versions": versions(),
        "machine": machine(),
    }


class _Loop:
    """A loop in a process that is idle while the other one's computes."""

    def __init__(
        self, make: Callable[[Workload, str], Step], workload: Workload, folder: str, environment: dict[str, str]
    ) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        spawn = multiprocessing.get_context("spawn")
        self._steps, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_take_steps, args=(theirs, make, workload, folder), daemon=True)
        with mock.patch.dict(os.environ, environment | dict(os.environ)):  # what the user has set stays
            self._process.start()
        theirs.close()

    def step(self, token_ids: Tensor) -> None:
        self._steps.send(token_ids.numpy())
        loss, seconds = self._steps.recv()
        self.losses.append(loss)
        self.seconds.append(seconds)

    def end(self) -> None:
        self._steps.close()
        self._process.join()


def _take_steps(steps: Connection, make: Callable[[Workload, str], Step], workload: Workload, folder: str) -> None:
    torch.set_num_threads(workload.threads)
    step = make(workload, folder)
    while True:
        try:
            token_ids = torch.from_numpy(steps.recv())
        except EOFError:
            return
        start = time.perf_counter()
        loss = step(token_ids)
        steps.send((loss, time.perf_counter() - start))


def _write_model(workload: Workload, folder: str) -> None:
    """The first weights of both."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=workload.vocab_size, n_embd=workload.hidden_size, n_layer=workload.num_layers,
        n_head=workload.num_heads, n_positions=workload.context, activation_function="gelu_new",
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def _plain(workload: Workload, folder: str) -> Step:
    """A loop as the documentation of `transformers` and torch has it."""
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    autocast = workload.dtype == "bfloat16"

    def step(token_ids: Tensor) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids=token_ids, labels=token_ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def _ours(workload: Workload, folder: str) -> Step:
    """The trainer, from the weights in `folder`."""
    recipe = Recipe(
        run="", tokenizer="", chat=ChatRecipe(sources={"none": ""}), model=ModelRecipe(path=folder),
        stages=(Stage(name="all", steps=workload.steps),),
        batch=BatchRecipe(rows=workload.rows, context=workload.context),
        optimizer=OptimizerRecipe(
            lr=LEARNING_RATE, beta1=BETAS[0], beta2=BETAS[1], weight_decay=WEIGHT_DECAY, clip=CLIP
        ),
        compute=ComputeRecipe(dtype="float32" if workload.dtype == "float32" else "bfloat16"),
    )  # fmt: skip
    with open(f"{folder}/config.json", "rb") as file:
        hf_config = json.load(file)
    config = FAMILIES["gpt2"](Fields(hf_config, "model"), Fields({}, "model"))
    trainer = Trainer(build(recipe, Described(hf_config, config), torch.device("cpu")), recipe)
    numbers = iter(range(workload.steps))

    def step(token_ids: Tensor) -> float:
        return float(trainer.step(next(numbers), [_packed(token_ids)]).loss)

    return step


def _packed(token_ids: Tensor) -> Packed:
    """Rows [rows, context] as documents that each learn their next tokens."""
    rows, context = token_ids.shape
    ids = token_ids.numpy()
    targets = np.full((rows, context), IGNORED, dtype=np.int64)
    targets[:, :-1] = ids[:, 1:]
    positions = np.tile(np.arange(context, dtype=np.int64), rows)
    bounds = np.arange(rows + 1, dtype=np.int32) * context
    return Packed(ids.reshape(-1), positions, bounds, targets.reshape(-1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="polyserve_benchmarks.train", description=__doc__.splitlines()[0])
    shape = {"hidden-size": 256, "num-layers": 12, "num-heads": 4, "vocab-size": 16_000, "rows": 16, "context": 256}
    for name, default in (*shape.items(), ("steps", 12), ("threads", num_cores())):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of products")
    print(json.dumps(run(Workload(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
