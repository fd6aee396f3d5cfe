"""The demo's table: bits per byte of what was held out, by language, of the model and of Kneser-Ney 5-grams.

Both are judged by every token of every held-out document but the first one, the end of the text included. The n-grams
were counted in all that the model learned from, and see a document whole, where the model sees rows of it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyserve_benchmarks.demo_train.kneser_ney import Ids, KneserNey
from polyserve_training.data.shards import Stream, open_dataset
from polyserve_training.run_log import read_log

SMALL_BYTES = 200_000  # a language with less to learn from is reported, and decides nothing
HEADINGS = ("language", "bytes", "Kneser-Ney", "after stage 1", "after stage 2", "less than Kneser-Ney")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One language, in bits per byte."""

    language: str
    train_bytes: int
    kneser_ney: float
    first_stage: float
    last: float

    @property
    def counts(self) -> bool:
        return self.train_bytes > SMALL_BYTES


def judge(train: Path, held_out: Path, run: Path, *, first_stage_steps: int) -> list[Verdict]:
    """Languages by how much there was to learn from. The run has validated after its first stage and its last step."""
    learned, judged = open_dataset(train), open_dataset(held_out)
    documents = [document for stream in learned.streams.values() for document in documents_of(stream)]
    ngrams = KneserNey(documents, vocab_size=learned.index.vocab_size)
    validations = [line for line in read_log(run) if "validation" in line]
    [first] = (line["validation"] for line in validations if line["step"] == first_stage_steps)
    last = validations[-1]["validation"]
    verdicts = []
    for language, stream in judged.streams.items():
        if language not in learned.streams:
            continue  # nothing to learn it from was kept
        name = f"texts/{language}"
        num_bytes = learned.streams[language].entry.num_bytes
        losses = first[name]["bits_per_byte"], last[name]["bits_per_byte"]
        verdicts.append(Verdict(language, num_bytes, bits_per_byte(ngrams, stream), *losses))
    return sorted(verdicts, key=lambda verdict: -verdict.train_bytes)


def bits_per_byte(ngrams: KneserNey, stream: Stream) -> float:
    """As validation.py has it: bits a token, times the whole stream's tokens per byte."""
    probabilities = np.concatenate([ngrams.probabilities(document) for document in documents_of(stream)])
    return float(-np.log2(probabilities).mean()) * stream.num_tokens / stream.entry.num_bytes


def documents_of(stream: Stream) -> list[Ids]:
    tokens, ends = stream.read(0, stream.num_tokens)
    return np.split(tokens, ends[:-1])


def summary(verdicts: list[Verdict]) -> dict[str, object]:
    """What the demo claims, and whether it is so."""
    large = [verdict for verdict in verdicts if verdict.counts]
    others = [verdict for verdict in verdicts if verdict.language != "en"]
    first, last = (sum(getattr(x, name) for x in others) / len(others) for name in ("first_stage", "last"))
    return {
        "beats_kneser_ney": {verdict.language: verdict.last < verdict.kneser_ney for verdict in large},
        "non_english_mean": {"first_stage": first, "last": last, "improves": last < first},
    }


def table(verdicts: list[Verdict]) -> str:
    """A star marks languages that are too small to count."""
    lines = ["{:10}{:>10}{:>12}{:>15}{:>15}{:>22}".format(*HEADINGS)]
    for x in verdicts:
        name, less = x.language + ("" if x.counts else " *"), 1 - x.last / x.kneser_ney
        losses = f"{x.kneser_ney:12.3f}{x.first_stage:15.3f}{x.last:15.3f}"
        lines.append(f"{name:10}{x.train_bytes:10,}{losses}{less:22.1%}")
    return "\n".join(lines)
