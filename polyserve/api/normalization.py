"""Texts in Unicode's composed form (NFC), for tokenizers that do not see to it themselves.

A decomposed Vietnamese or Korean text can have twice or four times the tokens of the composed one, which is what models
were trained on. Nothing composes across a line's end, so lines are taken one by one, with a turn for other threads.
Source: https://unicode.org/reports/tr15/
"""

from typing import Literal
from unicodedata import is_normalized, normalize

Normalization = Literal["none", "nfc"]


def normalized(text: str, how: Normalization) -> str:
    """The text as it is tokenised."""
    if how == "none" or text.isascii():
        return text
    return "".join(
        line if is_normalized("NFC", line) else normalize("NFC", line) for line in text.splitlines(keepends=True)
    )
