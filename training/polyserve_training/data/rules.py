"""What makes text unfit to learn from: fixes of lines, then rules about documents, in their order.

unit         a word between white space; in languages that write none, a character that is no white space
Limits       Gopher's, where it has the rule; per language what its writing needs (LIMITS). A rule that drops a document
             gives it the rule's name, for the report
Sources      Gopher, https://arxiv.org/abs/2112.11446, appendix A; PolyLM, https://arxiv.org/abs/2307.06018, section 3.1
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

URL = re.compile(r"(https?://|www\.)\S+")
BULLETS = ("-", "*", "•", "‣", "·", "–", "●", "○", "■")
ELLIPSES = ("...", "…")
JOINERS = "\u200c\u200d"  # letters of Persian, Hindi and emoji depend on them


@dataclass(frozen=True, slots=True)
class Limits:
    """What a document of a language may be. Shares are of its units, lines or characters, from 0 to 1."""

    units_are_characters: bool = False
    min_units: int = 50
    max_units: int = 100_000
    max_word_chars: int = 100  # longer ones are taken out
    max_symbol_share: float = 0.1  # of # and ellipses, to units
    max_ellipsis_lines: float = 0.3
    max_bullet_lines: float = 0.9
    max_invisible_share: float = 0.01
    max_digit_share: float = 0.25
    min_letter_share: float = 0.65
    max_repeated_lines: float = 0.3
    ngram: int = 5
    max_repeated_ngrams: float = 0.3


SPACED = Limits()
UNSPACED = Limits(
    units_are_characters=True, min_units=100, max_units=400_000, max_word_chars=1000, max_symbol_share=0.05, ngram=12
)
LIMITS = dict.fromkeys(("zh", "ja", "th", "lo", "km", "my"), UNSPACED)


def limits_of(language: str, *, min_units: int | None) -> Limits:
    """The limits of a language tag.  min_units: of words; a language without them needs twice as many characters."""
    limits = LIMITS.get(language.partition("-")[0], SPACED)
    if min_units is None:
        return limits
    return replace(limits, min_units=min_units * (2 if limits.units_are_characters else 1))


def fix_lines(text: str, limits: Limits) -> str:
    """Without lines that are an address and no more, words too long to be any, and spaces at the ends of lines."""
    lines = []
    for line in text.replace("\r\n", "\n").replace("\0", "").split("\n"):
        if line.strip() and not URL.sub("", line).strip():
            continue
        if any(len(word) > limits.max_word_chars for word in line.split()):
            line = " ".join(word for word in line.split(" ") if len(word) <= limits.max_word_chars)
        lines.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def why_unfit(text: str, limits: Limits) -> str | None:
    """The name of the first rule that a text breaks; None if it is fit."""
    seen = Seen(text, units_of(text, limits), [line for line in text.split("\n") if line.strip()], limits)
    return next((name for name, breaks in RULES.items() if breaks(seen)), None)


def units_of(text: str, limits: Limits) -> Sequence[str]:
    return "".join(text.split()) if limits.units_are_characters else text.split()


@dataclass(frozen=True, slots=True)
class Seen:
    """A text as the rules look at it."""

    text: str
    units: Sequence[str]
    lines: list[str]
    limits: Limits

    def share_of_characters(self, counts: Callable[[str], bool]) -> float:
        dense = "".join(self.text.split())
        return sum(map(counts, dense)) / max(len(dense), 1)

    def share_of_lines(self, counts: Callable[[str], bool]) -> float:
        return sum(map(counts, self.lines)) / max(len(self.lines), 1)


def _too_many_symbols(seen: Seen) -> bool:
    symbols = seen.text.count("#") + sum(map(seen.text.count, ELLIPSES))
    return symbols > seen.limits.max_symbol_share * len(seen.units)


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn") and character not in JOINERS


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


def _repeats_lines(seen: Seen) -> bool:
    repeated = sum(len(line) * (count - 1) for line, count in Counter(seen.lines).items())
    return repeated > seen.limits.max_repeated_lines * sum(map(len, seen.lines))


def _repeats_ngrams(seen: Seen) -> bool:
    n = seen.limits.ngram
    ngrams = Counter(tuple(seen.units[start : start + n]) for start in range(len(seen.units) - n + 1))
    total = sum(ngrams.values())
    return total - len(ngrams) > seen.limits.max_repeated_ngrams * total


RULES: dict[str, Callable[[Seen], bool]] = {
    "too short": lambda seen: len(seen.units) < seen.limits.min_units,
    "too long": lambda seen: len(seen.units) > seen.limits.max_units,
    "symbols": _too_many_symbols,
    "ellipses": lambda seen: seen.share_of_lines(lambda line: line.endswith(ELLIPSES)) > seen.limits.max_ellipsis_lines,
    "bullets": lambda seen: (
        seen.share_of_lines(lambda line: line.lstrip().startswith(BULLETS)) > seen.limits.max_bullet_lines
    ),
    "invisible": lambda seen: seen.share_of_characters(_is_invisible) > seen.limits.max_invisible_share,
    "numbers": lambda seen: seen.share_of_characters(str.isnumeric) > seen.limits.max_digit_share,
    "few letters": lambda seen: seen.share_of_characters(_is_letter) < seen.limits.min_letter_share,
    "repeated lines": _repeats_lines,
    "repetition": _repeats_ngrams,
}
