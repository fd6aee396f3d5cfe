"""Small texts and runs for tests of training: every language of PolyLM, a file each, and a decoder of two layers."""

from pathlib import Path

from polyserve_training.config import Recipe
from polyserve_training.recipe import read_recipe
from support.texts import LANGUAGES

VOCAB_SIZE = 600
RECIPE = """
run: {run}
tokenizer: {tokenizer}
model: {{family: polylm, hidden_size: 32, num_layers: 2, num_heads: 2, init_std: 0.1}}
data: {{sources: {{texts: {data}}}}}
block: 128
stages:
  - {{name: base, steps: 5, mixture: [{{streams: ["*/en"], share: 0.7}}, {{share: 0.3, sampling: smoothed}}]}}
  - {{name: more, steps: 4, mixture: [{{streams: ["*/en"], share: 0.4}}, {{share: 0.6, sampling: unimax}}]}}
batch: {{rows: 4, context: 48, micro_rows: 2}}
optimizer: {{lr: 1e-2}}
schedule: {{warmup_steps: 2}}
z_loss: 1e-4
dropout: 0.1
spikes: {{window: 4}}
checkpoints: {{every: 2, keep: 2}}
compute: {{device: cpu, threads: 1}}
"""


def write_texts(folder: Path, *, documents: int = 12) -> Path:
    """`de.txt` and so on: paragraphs between empty lines; the languages have from one to three times as many."""
    for number, (language, sentence) in enumerate(LANGUAGES.items()):
        count = documents * (1 + number % 3)
        texts = [f"{i}. {sentence[i % 7 :]}\n{sentence} ({i * 37})" for i in range(count)]
        (folder / f"{language}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return folder


def small_recipe(folder: Path, *overrides: str, tokenizer: Path, data: Path) -> Recipe:
    """Nine steps in two stages, into `folder`/run."""
    return read_recipe(write_recipe(folder, tokenizer=tokenizer, data=data), overrides)


def write_recipe(folder: Path, *, tokenizer: Path, data: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(run=folder / "run", tokenizer=tokenizer, data=data))
    return path
