"""The tokenizer of a checkpoint: of a folder with `tokenizer.json` or `tokenizer.model`, or inside a GGUF file."""

from dataclasses import replace
from pathlib import Path

from polyserve.errors import ModelLoadError
from polyserve.gguf import read_gguf
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.chat_templates import BUILT_IN_TEMPLATES
from polyserve.tokenizer.fingerprint import check_stamp
from polyserve.tokenizer.gguf import load_gguf_tokenizer
from polyserve.tokenizer.huggingface import load_tokenizer_json
from polyserve.tokenizer.sentencepiece import load_sentencepiece
from polyserve.tokenizer.settings import TokenizerSettings, read_settings, read_text


def load_tokenizer(path: Path, *, chat_template: str | None = None) -> Tokenizer:
    """Load from a folder or GGUF file. `chat_template`, a jinja file or built-in name, replaces the checkpoint's own.

    Raises ModelLoadError if there is no tokenizer, or it or the template cannot be used."""
    template = None if chat_template is None else _template_source(chat_template)
    if path.is_file():
        return load_gguf_tokenizer(read_gguf(path), chat_template=template)
    if not path.is_dir():
        raise ModelLoadError(f"{path}: there is no such folder or file")
    check_stamp(path)
    settings = read_settings(path)
    if template is not None:
        settings = replace(settings, chat_template=template)
    if (path / "tokenizer.json").is_file():
        return load_tokenizer_json(path / "tokenizer.json", settings)
    if (path / "tokenizer.model").is_file():
        return load_sentencepiece(path / "tokenizer.model", _with_polylm_template(settings))
    raise ModelLoadError(f"{path}: holds no tokenizer: neither tokenizer.json nor tokenizer.model is there")


def _with_polylm_template(settings: TokenizerSettings) -> TokenizerSettings:
    """GPT-2 over SentencePiece is PolyLM, whose checkpoints carry no template: raw text, as its base models want."""
    if settings.chat_template is None and settings.model_type == "gpt2":
        return replace(settings, chat_template=BUILT_IN_TEMPLATES["polylm-base"])
    return settings


def _template_source(chat_template: str) -> str:
    if chat_template in BUILT_IN_TEMPLATES:
        return BUILT_IN_TEMPLATES[chat_template]
    path = Path(chat_template)
    if not path.is_file():
        names = ", ".join(BUILT_IN_TEMPLATES)
        raise ModelLoadError(f"the chat template {chat_template!r} is neither a file nor one of {names}")
    return read_text(path)
