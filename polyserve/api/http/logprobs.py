"""Log-probabilities in the three shapes that clients read.

legacy   completions: parallel arrays over the tokens (`tokens`, `token_logprobs`, `top_logprobs`, `text_offset`)
chat     chat completions: one object a token, with exact `bytes`
prompt   vLLM's `prompt_logprobs`: one object a position, keyed by token id
The same token has the same float everywhere, so that a client finds out whether it was the likeliest one by comparing.
"""

import codecs
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from polyserve.output import LogprobEntry, TopLogprob
from polyserve.tokenizer.base import Tokenizer


@dataclass(frozen=True, slots=True)
class LegacyLogprobs:
    """Arrays of one length. `text_offset` counts characters of the choice's `text`."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def extend(self, more: "LegacyLogprobs") -> None:
        self.tokens.extend(more.tokens)
        self.token_logprobs.extend(more.token_logprobs)
        self.top_logprobs.extend(more.top_logprobs)
        self.text_offset.extend(more.text_offset)


def legacy_token(data: bytes) -> str:
    """A token as a string and a key: its text, or its bytes spelled out where they are not whole characters."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class LegacyWriter:
    """Writes the arrays of one choice as it grows.

    num_top: how many alternatives were asked for; the token itself is always among them.
    hidden: ids of tokens that are not in the text.  start: characters of the text before the first token.
    """

    def __init__(self, *, num_top: int, hidden: Collection[int] = frozenset(), start: int = 0) -> None:
        self._num_top = num_top
        self._hidden = hidden
        self._offset = start
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, entries: Sequence[LogprobEntry]) -> LegacyLogprobs:
        """The arrays of the next tokens."""
        return LegacyLogprobs(
            [legacy_token(entry.bytes) for entry in entries],
            [entry.logprob for entry in entries],
            [self._top(entry) for entry in entries],
            [self._place(entry.token_id, entry.bytes) for entry in entries],
        )

    def write_prompt(
        self, tokenizer: Tokenizer, token_ids: Sequence[int], entries: Sequence[LogprobEntry | None]
    ) -> LegacyLogprobs:
        """The arrays of a prompt, whose first token nothing predicts."""
        data = [tokenizer.token_bytes(token_id) for token_id in token_ids]
        return LegacyLogprobs(
            [legacy_token(token) for token in data],
            [None if entry is None else entry.logprob for entry in entries],
            [None if entry is None else self._top(entry) for entry in entries],
            [self._place(token_id, token) for token_id, token in zip(token_ids, data, strict=True)],
        )

    def _top(self, entry: LogprobEntry) -> dict[str, float]:
        """Best first, then the token itself. Of two tokens with one spelling the likelier one stays."""
        top: dict[str, float] = {}
        for other in entry.top[: self._num_top]:
            top.setdefault(legacy_token(other.bytes), other.logprob)
        top.setdefault(legacy_token(entry.bytes), entry.logprob)
        return top

    def _place(self, token_id: int, data: bytes) -> int:
        """Where the token begins; inside a character, where that begins."""
        offset = max(0, self._offset)
        if token_id not in self._hidden:
            self._offset += len(self._characters.decode(data))
        return offset


def num_characters(data: bytes) -> int:
    """Length of the text of these bytes."""
    return len(data.decode("utf-8", "replace"))


def chat_logprobs(entries: Sequence[LogprobEntry], *, hidden: Collection[int]) -> dict[str, object]:
    """`logprobs` of a chat choice. A token that is not in the text has no bytes, so that the bytes make up the text."""
    content = [
        {**_chat_token(entry, hidden), "top_logprobs": [_chat_token(other, hidden) for other in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _chat_token(entry: LogprobEntry | TopLogprob, hidden: Collection[int]) -> dict[str, object]:
    data = None if entry.token_id in hidden else list(entry.bytes)
    return {"token": entry.token, "logprob": entry.logprob, "bytes": data}


def prompt_logprobs(entries: Sequence[LogprobEntry | None], *, num_top: int) -> list[dict[str, object] | None]:
    """One object a position: the likeliest tokens by rank, and the prompt's own, of rank null if it is none of them."""
    return [None if entry is None else _ranked(entry, num_top) for entry in entries]


def _ranked(entry: LogprobEntry, num_top: int) -> dict[str, object]:
    tokens: dict[str, object] = {}
    for rank, other in enumerate(entry.top[:num_top], start=1):
        tokens[str(other.token_id)] = {"logprob": other.logprob, "rank": rank, "decoded_token": other.token}
    tokens.setdefault(str(entry.token_id), {"logprob": entry.logprob, "rank": None, "decoded_token": entry.token})
    return tokens
