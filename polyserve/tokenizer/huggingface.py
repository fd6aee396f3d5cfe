"""`tokenizer.json` files through the `tokenizers` library.

The library encodes, special tokens and BOS included (its post-processor says what belongs around a text); bytes of tokens are worked
out here, from the file's decoder. `encode` of the library holds the interpreter's lock for the whole text, half a second for a million
characters; `encode_batch_fast` of one text does not, and is what is called. Truncation and padding that a file may carry are
switched off: a prompt is never cut without a word.
"""

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
            vocab_size=max(library.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
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


class _DecoderEntry(msgspec.Struct):
    decoder: object = None


def load_tokenizer_json(path: Path, settings: TokenizerSettings) -> HuggingFaceTokenizer:
    """The tokenizer of a `tokenizer.json` file. Raises ModelLoadError if the file, or what the settings say of it, cannot be used."""
    try:
        content = path.read_bytes()
        entry = msgspec.json.decode(content, type=_DecoderEntry)
        library = tokenizers.Tokenizer.from_buffer(content)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # the library raises nothing narrower
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(f"{path}: damaged, or not a tokenizer: {reason}") from error
    decoder = read_decoder(entry.decoder, path)
    added = tuple(
        AddedToken(token.content, i, special=token.special) for i, token in library.get_added_tokens_decoder().items()
    )
    special = resolve_special(
        msgspec.structs.replace(settings, added=added),
        source=path,
        ids=library.get_vocab(with_added_tokens=True),
        fallback=SpecialIds(),
    )
    _surround(library, special, settings)
    return HuggingFaceTokenizer(library, decoder=decoder, special=special, chat_template=settings.chat_template)
