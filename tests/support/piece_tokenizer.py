"""A tokenizer whose vocabulary is a list of byte strings, so that a test decides where tokens begin and end."""

from collections.abc import Sequence

from polyserve.tokenizer.base import SpecialIds, Tokenizer


class PieceTokenizer(Tokenizer):
    """Token i adds `pieces[i]`. Encoding takes the longest piece that fits, from left to right."""

    def __init__(
        self, pieces: Sequence[bytes], *, special_ids: Sequence[int] = (), chat_template: str | None = None
    ) -> None:
        self._pieces = list(pieces)
        super().__init__(
            vocab_size=len(pieces),
            special=SpecialIds(others=frozenset(special_ids)),
            adds_bos=False,
            removes_leading_space=False,
            chat_template=chat_template,
        )

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        data, token_ids = text.encode(), []
        while data:
            fitting = [token_id for token_id, piece in enumerate(self._pieces) if piece and data.startswith(piece)]
            token_ids.append(max(fitting, key=lambda token_id: len(self._pieces[token_id])))
            data = data[len(self._pieces[token_ids[-1]]) :]
        return token_ids

    def _bytes_of(self, token_id: int) -> bytes:
        return self._pieces[token_id]


def byte_tokenizer(*, chat_template: str | None = None) -> PieceTokenizer:
    """256 tokens, one for each byte."""
    return PieceTokenizer([bytes([value]) for value in range(256)], chat_template=chat_template)
