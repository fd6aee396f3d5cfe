"""Small texts for tests of training: every language of PolyLM, a file each, documents that differ."""

from pathlib import Path

from support.texts import LANGUAGES

VOCAB_SIZE = 600


def write_texts(folder: Path, *, documents: int = 12) -> Path:
    """`de.txt` and so on: paragraphs between empty lines; the languages have from one to three times as many."""
    for number, (language, sentence) in enumerate(LANGUAGES.items()):
        count = documents * (1 + number % 3)
        texts = [f"{i}. {sentence[i % 7 :]}\n{sentence} ({i * 37})" for i in range(count)]
        (folder / f"{language}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return folder
