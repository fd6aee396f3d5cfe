"""The streams of a recipe, open: text in shards, or conversations; and what identifies their contents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polyserve.errors import TrainingError
from polyserve.tokenizer.base import Tokenizer
from polyserve_training.config import Recipe
from polyserve_training.data.chat_rows import ChatRows, open_conversations
from polyserve_training.data.packing import RowSource, TextRows
from polyserve_training.data.shards import open_dataset


@dataclass(frozen=True, slots=True)
class Sources:
    streams: dict[str, RowSource]  # by name, SOURCE/LANGUAGE
    fingerprints: dict[str, str]  # by source


def open_sources(recipe: Recipe, tokenizer: Tokenizer, *, tokenizer_sha256: str) -> Sources:
    """What the recipe learns from. Raises TrainingError."""
    if recipe.data is not None:
        return _open_texts(
            recipe.data.sources,
            verify=recipe.data.verify,
            context=recipe.batch.context,
            tokenizer_sha256=tokenizer_sha256,
        )
    assert recipe.chat is not None
    return _open_chats(recipe.chat.sources, tokenizer, recipe)


def open_validation(recipe: Recipe, tokenizer: Tokenizer, *, tokenizer_sha256: str) -> dict[str, RowSource]:
    """What the recipe is judged on: of the kind that it learns from. Raises TrainingError."""
    if recipe.validation is None:
        return {}
    if recipe.chat is not None:
        return _open_chats(recipe.validation.sources, tokenizer, recipe).streams
    return _open_texts(
        recipe.validation.sources,
        verify="full",
        context=recipe.batch.context,
        tokenizer_sha256=tokenizer_sha256,
    ).streams


def check_stops(streams: Mapping[str, RowSource], eos_ids: Sequence[int]) -> None:
    """Raise TrainingError if answers end with a token at which the served model, whose eos_ids these are, goes on."""
    for name, rows in streams.items():
        unknown = rows.stop_ids.difference(eos_ids) if isinstance(rows, ChatRows) else None
        if unknown:
            raise TrainingError(
                f"chat: answers of {name} end with token {min(unknown)}, at which the model would not stop: "
                f"its eos_token_id is {', '.join(map(str, eos_ids)) or 'not set'}"
            )


def _open_chats(paths: Mapping[str, str], tokenizer: Tokenizer, recipe: Recipe) -> Sources:
    streams: dict[str, RowSource] = {}
    fingerprints = {}
    for name, path in paths.items():
        rows, fingerprints[name] = open_conversations(
            Path(path), tokenizer, context=recipe.batch.context, seed=recipe.seed
        )
        streams |= {f"{name}/{language}": found for language, found in rows.items()}
    return Sources(streams, fingerprints)


def _open_texts(
    folders: Mapping[str, str], *, verify: Literal["full", "size"], context: int, tokenizer_sha256: str
) -> Sources:
    """Raises TrainingError if a data set is damaged, or was made with another tokenizer."""
    streams: dict[str, RowSource] = {}
    fingerprints: dict[str, str] = {}
    for name, folder in folders.items():
        dataset = open_dataset(Path(folder), verify=verify)
        if dataset.index.tokenizer_sha256 != tokenizer_sha256:
            raise TrainingError(f"{folder}: was encoded with another tokenizer than the recipe's")
        streams |= {f"{name}/{language}": TextRows(stream, context) for language, stream in dataset.streams.items()}
        fingerprints[name] = dataset.index.fingerprint
    return Sources(streams, fingerprints)
