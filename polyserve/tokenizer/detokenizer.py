"""Token ids to text while they arrive: characters are held back until whole, bytes that cannot become one are U+FFFD.

    "".join(push(part) for part in parts) + flush()  ==  b"".join(bytes of every token).decode("utf-8", "replace")

for every way to cut the sequence into parts. The right-hand side is the definition of a streamed text.
"""

import codecs
from collections.abc import Iterable

from polyserve.tokenizer.base import Tokenizer

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one growing sequence. A space before the first word is kept: the sequence continues a prompt."""

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, shown_ids: frozenset[int] = frozenset()
    ) -> None:
        """shown_ids: special tokens that are not skipped."""
        self._tokenizer = tokenizer
        self._skipped: frozenset[int] = tokenizer.special_ids - shown_ids if skip_special_tokens else frozenset()
        self._decoder = _new_decoder("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        return self.push_bytes(self.bytes_of(token_ids))

    def bytes_of(self, token_ids: Iterable[int]) -> bytes:
        """What these tokens add. An id beyond the vocabulary (a padding row of the embedding) adds nothing."""
        tokenizer, skipped = self._tokenizer, self._skipped
        return b"".join(tokenizer.token_bytes(i) for i in token_ids if i not in skipped and i < tokenizer.vocab_size)

    def push_bytes(self, data: bytes) -> str:
        """The text that these bytes complete, for a caller that looks at the tokens' bytes first."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What was held back, at the end of the sequence: U+FFFD for a character left unfinished, or nothing."""
        return self._decoder.decode(b"", final=True)
