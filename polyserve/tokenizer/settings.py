"""What the JSON files beside a tokenizer say about it: special tokens, BOS, ids that end an answer, chat template.

tokenizer_config.json     bos_token, eos_token, pad_token, unk_token, added tokens, add_bos_token, chat_template, ...
special_tokens_map.json   the same tokens in older checkpoints; tokenizer_config.json goes first
added_tokens.json         {content: id} in older checkpoints
chat_template.jinja       goes before the template in tokenizer_config.json
generation_config.json    eos_token_id, one id or several, also ones that no tokenizer file names; else from config.json
Every file may be missing. One that is there and is not what it should be is a ModelLoadError.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polyserve.errors import ModelLoadError
from polyserve.tokenizer.added import AddedToken
from polyserve.tokenizer.base import SpecialIds

_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_LISTED = ("additional_special_tokens", "extra_special_tokens")
_MAX_VOCAB_SIZE = 1 << 24  # more than any vocabulary has; a damaged id must not make us set aside memory for it


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings:
    """None and empty mean: not said."""

    named: Mapping[str, str] = field(default_factory=dict)  # content of bos_token, eos_token, pad_token, unk_token
    listed: tuple[str, ...] = ()  # contents of further special tokens
    added: tuple[AddedToken, ...] = ()
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_prefix_space: bool | None = None
    tokenizer_class: str | None = None
    model_type: str | None = None
    bos_ids: tuple[int, ...] = ()  # from the model's configuration, where old checkpoints hold wrong ones
    eos_ids: tuple[int, ...] = ()
    chat_template: str | None = None


def read_settings(folder: Path) -> TokenizerSettings:
    """Gather what the files of a checkpoint folder say."""
    tokenizer = read_object(folder / "tokenizer_config.json")
    generation, model = read_object(folder / "generation_config.json"), read_object(folder / "config.json")
    tokens = read_object(folder / "special_tokens_map.json")
    tokens.update((key, value) for key, value in tokenizer.items() if value is not None)
    named = {name: content for name in _NAMED if (content := _content(tokens.get(name)))}
    listed = tuple(content for name in _LISTED for content in _contents(tokens.get(name)))
    return TokenizerSettings(
        named=named,
        listed=listed,
        added=_read_added(folder, tokenizer, special={*named.values(), *listed}),
        add_bos=_bool(tokenizer, "add_bos_token"),
        add_eos=_bool(tokenizer, "add_eos_token"),
        add_prefix_space=_bool(tokenizer, "add_prefix_space"),
        tokenizer_class=_str(tokenizer, "tokenizer_class"),
        model_type=_str(model, "model_type"),
        bos_ids=_ids(generation, "bos_token_id") or _ids(model, "bos_token_id"),
        eos_ids=_ids(generation, "eos_token_id") or _ids(model, "eos_token_id"),
        chat_template=_read_template(folder, tokenizer),
    )


def resolve_special(
    settings: TokenizerSettings, *, source: Path, ids: Mapping[str, int], fallback: SpecialIds
) -> SpecialIds:
    """Turn the settings' strings into ids of a vocabulary; where they say nothing, what the vocabulary says counts.

    An id from the model's configuration counts only if that token is more than text: early PolyLM configurations name
    the last word of the vocabulary as BOS and EOS."""
    found = {name: ids.get(content) for name, content in settings.named.items()}
    for name in ("bos_token", "eos_token"):
        if name in found and found[name] is None:
            raise ModelLoadError(f"{source}: its vocabulary lacks the {name} {settings.named[name]!r}")
    added = {token.token_id for token in settings.added}
    others = fallback.others | {token.token_id for token in settings.added if token.special}
    others |= {ids[content] for content in settings.listed if content in ids}
    own = others | added
    config_eos = tuple(i for i in settings.eos_ids if i in own)
    config_bos = tuple(i for i in settings.bos_ids if i in own)
    eos_id = _first(found.get("eos_token"), fallback.eos_id, *config_eos)
    return SpecialIds(
        bos_id=_first(found.get("bos_token"), fallback.bos_id, *config_bos),
        eos_id=eos_id,
        pad_id=_first(found.get("pad_token"), fallback.pad_id),
        unk_id=_first(found.get("unk_token"), fallback.unk_id),
        eos_ids=tuple(dict.fromkeys(i for i in (eos_id, *config_eos) if i is not None)),
        others=others,
    )


def _first(*candidates: int | None) -> int | None:
    return next((candidate for candidate in candidates if candidate is not None), None)


def _read_added(folder: Path, tokenizer: Mapping[str, object], *, special: set[str]) -> tuple[AddedToken, ...]:
    """Added tokens of both layouts, by id."""
    added: dict[int, AddedToken] = {}
    for content, token_id in read_object(folder / "added_tokens.json").items():
        if not isinstance(token_id, int) or not 0 <= token_id < _MAX_VOCAB_SIZE:
            raise ModelLoadError(f"{folder / 'added_tokens.json'}: {content!r} must have an id, got {token_id!r}")
        added[token_id] = AddedToken(content, token_id, special=content in special)
    listed = tokenizer.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise ModelLoadError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder must be an object")
    for key, value in listed.items():
        token = _added_token(key, value, special=special)
        if token is None:
            raise ModelLoadError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder: unusable entry {key!r}")
        added[token.token_id] = token
    return tuple(added.values())


def _added_token(key: str, value: object, *, special: set[str]) -> AddedToken | None:
    """One entry of added_tokens_decoder, or None if it is not what it should be."""
    content = _content(value)
    if not isinstance(value, dict) or not content or not key.isdecimal() or len(key) > len(str(_MAX_VOCAB_SIZE)):
        return None
    if int(key) >= _MAX_VOCAB_SIZE:
        return None
    return AddedToken(
        content,
        int(key),
        special=bool(value.get("special")) or content in special,
        lstrip=bool(value.get("lstrip")),
        rstrip=bool(value.get("rstrip")),
        single_word=bool(value.get("single_word")),
    )


def _read_template(folder: Path, tokenizer: Mapping[str, object]) -> str | None:
    """The checkpoint's chat template; of several named ones, the one called default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    template = tokenizer.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ModelLoadError(
            f"{folder / 'tokenizer_config.json'}: chat_template must be a text or a list of named ones"
        )
    return template


def read_text(path: Path) -> str:
    """A text file's content. Raises ModelLoadError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path}: damaged: not UTF-8") from error


def read_object(path: Path) -> dict[str, object]:
    """A JSON object, or an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: damaged: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value


def _content(token: object) -> str | None:
    """A token as the files write it: its text, or an object that holds the text."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _contents(tokens: object) -> list[str]:
    """Several tokens: a list, or an object with a name for each."""
    listed = list(tokens.values()) if isinstance(tokens, dict) else tokens
    return [content for token in listed if (content := _content(token))] if isinstance(listed, list) else []


def _ids(values: Mapping[str, object], key: str) -> tuple[int, ...]:
    value = values.get(key)
    listed = value if isinstance(value, list) else [value]
    return tuple(i for i in listed if isinstance(i, int))


def _bool(values: Mapping[str, object], key: str) -> bool | None:
    value = values.get(key)
    return value if isinstance(value, bool) else None


def _str(values: Mapping[str, object], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) else None
