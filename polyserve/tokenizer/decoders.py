"""How the strings in a `tokenizer.json` vocabulary stand for bytes, as its `decoder` says.

ByteLevel      each character is one byte, in GPT-2's alphabet of 256 printable characters
ByteFallback   `<0xNN>` is a byte, everything else is UTF-8; before that, Replace turns ▁ into a space
Metaspace      UTF-8 with ▁ for a space; the space before the first word is not part of the text
Any other decoder (WordPiece, BPEDecoder, CTC, Replace by a regular expression) is refused by name: its tokens have no
bytes of their own, or none that could be told without knowing their neighbours.
Source   https://huggingface.co/docs/tokenizers/api/decoders
         alphabet: https://github.com/openai/gpt-2/blob/master/src/encoder.py (bytes_to_unicode)
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from polyserve.errors import ModelLoadError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters are themselves, the other bytes are U+0100 and on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class TokenDecoder:
    """Turns one token's string into its bytes."""

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    removes_leading_space: bool = False  # from a whole text

    def to_bytes(self, token: str) -> bytes:
        if self.byte_level:
            codes = [_BYTE_OF_CHARACTER.get(character) for character in token]
            # A token with a character outside the alphabet was never bytes: it is its own text.
            known = [code for code in codes if code is not None]
            return bytes(known) if len(known) == len(codes) else token.encode()
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return token.encode()


BYTE_LEVEL = TokenDecoder(byte_level=True)


def read_decoder(value: object, source: Path) -> TokenDecoder:
    """The `decoder` entry of a `tokenizer.json`. Raises ModelLoadError if a part of it is not known."""
    decoder, fused = TokenDecoder(), False
    parts = _parts(value, source)
    if not parts:
        raise ModelLoadError(f"{source}: a tokenizer without a decoder is not supported")
    for part in parts:
        kind = part.get("type")
        if kind == "ByteLevel" and len(parts) == 1:
            decoder = BYTE_LEVEL
        elif kind == "ByteFallback" and not fused:
            decoder = replace(decoder, byte_fallback=True)
        elif kind == "Replace" and not fused and not decoder.byte_fallback:
            decoder = replace(decoder, replacements=(*decoder.replacements, _replacement(part, source)))
        elif kind == "Metaspace" and not fused:
            space = (str(part.get("replacement", "▁")), " ")
            decoder = replace(
                decoder, replacements=(*decoder.replacements, space), removes_leading_space=_prepends_space(part)
            )
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and (part.get("content"), part.get("start"), part.get("stop")) == (" ", 1, 0):
            decoder = replace(decoder, removes_leading_space=True)
        else:
            raise ModelLoadError(f"{source}: the tokenizer's decoder {kind} is not supported here: {part}")
    return decoder


def _parts(value: object, source: Path) -> list[dict[str, object]]:
    """The steps of a decoder, sequences laid flat."""
    if value is None:
        return []
    if not isinstance(value, dict):
        raise ModelLoadError(f"{source}: the tokenizer's decoder must be an object, got {value!r}")
    if value.get("type") != "Sequence":
        return [value]
    inner = value.get("decoders")
    return [part for step in (inner if isinstance(inner, list) else []) for part in _parts(step, source)]


def _replacement(part: dict[str, object], source: Path) -> tuple[str, str]:
    pattern, content = part.get("pattern"), part.get("content")
    old = pattern.get("String") if isinstance(pattern, dict) else None
    if not isinstance(old, str) or not old or not isinstance(content, str):
        raise ModelLoadError(f"{source}: the tokenizer's decoder Replace is not supported with the pattern {pattern!r}")
    return old, content


def _prepends_space(part: dict[str, object]) -> bool:
    """Whether Metaspace puts a space before a text: said in one of two ways, by the file's age."""
    return part.get("prepend_scheme", "always") != "never" and part.get("add_prefix_space", True) is not False
