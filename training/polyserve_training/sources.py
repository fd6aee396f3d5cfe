"""The streams of a recipe, open: text in shards, or conversations; and what identifies their contents."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polyserve.errors import TrainingError
from polyserve.tokenizer.base import Tokenizer
from polyserve_training.config import Recipe
from polyserve_training.data.chat_rows import open_conversations
from polyserve_training.data.packing import RowSource, TextRows
from polyserve_training.data.shards import open_dataset


@dataclass(frozen=True, slots=True)
class Sources:
    streams: dict[str, RowSource]  # by name, SOURCE/LANGUAGE
    fingerprints: dict[str, str]  # by source


def open_sources(recipe: Recipe, tokenizer: Tokenizer, *, tokenizer_sha256: str) -> Sources:
    """What the recipe learns from. Raises TrainingError."""
    context = recipe.batch.context
    if recipe.data is not None:
        texts, fingerprints = open_texts(
            recipe.data.sources, verify=recipe.data.verify, context=context, tokenizer_sha256=tokenizer_sha256
        )
        return Sources(dict(texts), fingerprints)
    assert recipe.chat is not None
    streams: dict[str, RowSource] = {}
    fingerprints = {}
    for name, path in recipe.chat.sources.items():
        rows, fingerprints[name] = open_conversations(Path(path), tokenizer, context=context, seed=recipe.seed)
        streams |= {f"{name}/{language}": found for language, found in rows.items()}
    return Sources(streams, fingerprints)


def open_texts(
    folders: Mapping[str, str], *, verify: Literal["full", "size"], context: int, tokenizer_sha256: str
) -> tuple[dict[str, TextRows], dict[str, str]]:
    """Streams of data sets by name, and each one's fingerprint. Raises TrainingError if one is damaged, or was made
    with another tokenizer."""
    streams: dict[str, TextRows] = {}
    fingerprints: dict[str, str] = {}
    for name, folder in folders.items():
        dataset = open_dataset(Path(folder), verify=verify)
        if dataset.index.tokenizer_sha256 != tokenizer_sha256:
            raise TrainingError(f"{folder}: was encoded with another tokenizer than the recipe's")
        streams |= {f"{name}/{language}": TextRows(stream, context) for language, stream in dataset.streams.items()}
        fingerprints[name] = dataset.index.fingerprint
    return streams, fingerprints
