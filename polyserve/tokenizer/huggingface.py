"""`tokenizer.json` files through the `tokenizers` library.

The library encodes, special tokens included; its post-processor says what belongs around a text, such as BOS. The bytes
of a token are worked out here, from the file's decoder. The library's `encode` holds the interpreter's lock for the
whole text, half a second for a million characters; `encode_batch_fast` of one text does not, and is what is called.
Truncation and padding that a file may carry are switched off: a prompt is never cut without a word.
"""

from dataclasses import replace
from pathlib import Path

import msgspec
import tokenizers
from tokenizers.processors import TemplateProcessing

from polyserve.errors import ModelLoadError
from polyserve.tokenizer.added import AddedToken
from polyserve.tokenizer.base import SpecialIds, Tokenizer
from polyserve.tokenizer.decoders import TokenDecoder, read_decoder
from polyserve.tokenizer.settings import TokenizerSettings, resolve_special


class HuggingFaceTokenizer(Tokenizer):
    """`library` is taken over: it must not be changed any more."""

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        *,
        vocab_size: int,
        decoder: TokenDecoder,
        special: SpecialIds,
        chat_template: str | None,
    ) -> None:
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._decoder = decoder
        self._added = {i: token.content.encode() for i, token in library.get_added_tokens_decoder().items()}
        around = self._encode("", add_special_tokens=True)
        super().__init__(
            vocab_size=vocab_size,
            special=special,
            adds_bos=special.bos_id is not None and special.bos_id in around,
            removes_leading_space=decoder.removes_leading_space,
            chat_template=chat_template,
        )

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self._library.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id]
        token = self._library.id_to_token(token_id)
        return b"" if token is None else self._decoder.to_bytes(token)  # vocabularies may have holes


def surround(library: tokenizers.Tokenizer, special: SpecialIds, *, add_bos: bool, add_eos: bool) -> None:
    """Make the library put BOS before a text and EOS after it, or neither; a token that there is not is left out."""
    wanted = {"BOS": special.bos_id if add_bos else None, "EOS": special.eos_id if add_eos else None}
    present = {name: token_id for name, token_id in wanted.items() if token_id is not None}
    pieces = [*(["BOS"] if "BOS" in present else []), "$A", *(["EOS"] if "EOS" in present else [])]
    library.post_processor = TemplateProcessing(
        single=pieces,
        special_tokens=[
            {"id": name, "ids": [token_id], "tokens": [library.id_to_token(token_id)]}
            for name, token_id in present.items()
        ],
    )


class _File(msgspec.Struct):
    """The one part of the file that the library does not show."""

    decoder: object = None


def load_tokenizer_json(path: Path, settings: TokenizerSettings) -> HuggingFaceTokenizer:
    """The tokenizer of a `tokenizer.json`; a ModelLoadError if it, or what the settings say of it, is unusable."""
    try:
        content = path.read_bytes()
        file = msgspec.json.decode(content, type=_File)
        library = tokenizers.Tokenizer.from_buffer(content)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # the library raises nothing narrower
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(f"{path}: damaged, or not a tokenizer: {reason}") from error
    vocabulary = library.get_vocab(with_added_tokens=True)
    for token in settings.added:
        if vocabulary.get(token.content) != token.token_id:
            raise ModelLoadError(
                f"{path}: lacks the added token {token.content!r}, id {token.token_id}, of tokenizer_config.json"
            )
    added = tuple(
        AddedToken(token.content, i, special=token.special) for i, token in library.get_added_tokens_decoder().items()
    )
    special = resolve_special(replace(settings, added=added), source=path, ids=vocabulary, fallback=SpecialIds())
    if settings.add_bos is not None or settings.add_eos is not None:  # otherwise the file's own post-processor decides
        surround(library, special, add_bos=bool(settings.add_bos), add_eos=bool(settings.add_eos))
    return HuggingFaceTokenizer(
        library,
        vocab_size=max(vocabulary.values(), default=-1) + 1,
        decoder=read_decoder(file.decoder, path),
        special=special,
        chat_template=settings.chat_template,
    )
