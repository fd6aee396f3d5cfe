"""Which script a text is written in, by the names that Unicode gives its letters.

The first word of a letter's name is its script, but for a few. A text counts as of one script, that of most of the
letters looked at, and a short piece of one as that of its first letter: metrics are about traffic, not about a text.
"""

import unicodedata
from collections import Counter
from functools import lru_cache

COMMON = "common"  # digits, punctuation, spaces, emoji: letters of no script
OTHER = "other"  # scripts that are not listed, so that nobody can make metrics grow
# fmt: off
SCRIPTS = frozenset((
    "arabic", "armenian", "bengali", "bopomofo", "cyrillic", "devanagari", "ethiopic", "georgian", "greek", "gujarati",
    "gurmukhi", "han", "hangul", "hebrew", "hiragana", "kannada", "katakana", "khmer", "lao", "latin", "malayalam",
    "mongolian", "myanmar", "oriya", "sinhala", "tamil", "telugu", "thai", "tibetan",
))
# fmt: on
_RENAMED = {"cjk": "han", "halfwidth": "katakana", "fullwidth": "latin"}
MAX_LETTERS = 64  # of a text that are looked at
MAX_CHARACTERS = 512  # among which they are looked for, spread over the text


def script_of_text(text: str) -> str:
    """The script of most letters: one of SCRIPTS, OTHER, or COMMON if there is no letter."""
    if len(text) > MAX_CHARACTERS:
        text = text[:: len(text) // MAX_CHARACTERS]
    letters = [character for character in text if character.isalpha()][:MAX_LETTERS]
    counts = Counter(map(_script_of_letter, letters))
    return counts.most_common(1)[0][0] if counts else COMMON


def script_of_piece(text: str) -> str:
    """The script of the first letter."""
    return next((_script_of_letter(character) for character in text if character.isalpha()), COMMON)


@lru_cache(maxsize=4096)
def _script_of_letter(letter: str) -> str:
    word = unicodedata.name(letter, OTHER).split()[0].split("-")[0].lower()
    script = _RENAMED.get(word, word)
    return script if script in SCRIPTS else OTHER
