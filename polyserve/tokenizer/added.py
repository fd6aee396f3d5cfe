"""Strings that are tokens by themselves, looked for in a text before it is tokenised; the longest first at each place.

Hugging Face calls them added tokens: special tokens, and words that were added to a vocabulary after its training.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AddedToken:
    content: str
    token_id: int
    special: bool = True
    lstrip: bool = False  # takes the white space before it along
    rstrip: bool = False  # takes the white space after it along
    single_word: bool = False  # is only found where no word goes on beside it; `AddedTokens` cannot do that


class AddedTokens:
    """Cuts texts at added tokens. There can be thousands: a place is looked up by length, not compared with each."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = {token.content: token for token in tokens if token.content}
        self._lengths = sorted({len(content) for content in self._tokens}, reverse=True)
        first = "".join(sorted({content[0] for content in self._tokens}))
        self._candidate = re.compile(f"[{re.escape(first)}]") if first else None

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of `text` in order: a str to tokenise, or an added token's id. No part is empty."""
        done = 0
        for token, start, end in self._find(text):
            before = text[done:start].rstrip() if token.lstrip else text[done:start]
            if before:
                yield before
            yield token.token_id
            done = end
            if token.rstrip:
                while done < len(text) and text[done].isspace():
                    done += 1
        if done < len(text):
            yield text[done:]

    def _find(self, text: str) -> Iterator[tuple[AddedToken, int, int]]:
        """Each added token in the text, with where it starts and ends."""
        if self._candidate is None:
            return
        start = 0
        while found := self._candidate.search(text, start):
            start = found.start()
            token = self._at(text, start)
            if token is None:
                start += 1
                continue
            yield token, start, start + len(token.content)
            start += len(token.content)

    def _at(self, text: str, start: int) -> AddedToken | None:
        for length in self._lengths:
            token = self._tokens.get(text[start : start + length])
            if token is not None:
                return token
        return None
