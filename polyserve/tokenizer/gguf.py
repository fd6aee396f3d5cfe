"""Tokenizers inside GGUF files.

tokenizer.ggml.model        "gpt2": byte-level BPE, tokens and merges; "llama": SentencePiece BPE, tokens and scores
tokenizer.ggml.pre          how byte-level BPE cuts a text into words (`word_rules`)
tokenizer.ggml.token_type   1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte: SentencePiece's numbers
The pieces become models of the libraries that train such vocabularies (`tokenizers`, `sentencepiece`), so that the ids
are those of the original tokenizer.
Source   https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from typing import TypeVar

import numpy as np
import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec  # type: ignore[attr-defined]  # no stub

from polyserve.errors import ModelLoadError
from polyserve.gguf import GGUFFile
from polyserve.log import escaped
from polyserve.tokenizer.base import SpecialIds, Tokenizer
from polyserve.tokenizer.decoders import BYTE_LEVEL
from polyserve.tokenizer.huggingface import HuggingFaceTokenizer, surround
from polyserve.tokenizer.sentencepiece import SPACE, Around, SentencePieceTokenizer, open_vocabulary
from polyserve.tokenizer.word_rules import WORD_RULES

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

T = TypeVar("T")


def load_gguf_tokenizer(file: GGUFFile, *, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer that a file carries; the source of a `chat_template` goes before the file's own.

    Raises ModelLoadError if there is none, or none that can be used."""
    if chat_template is None:
        chat_template = _get(file, "tokenizer.chat_template", str, "") or None
    model = _get(file, "tokenizer.ggml.model", str)
    if model == "gpt2":
        return _byte_level_bpe(file, chat_template)
    if model == "llama":
        return _sentencepiece_bpe(file, chat_template)
    raise ModelLoadError(f"{file.path}: the tokenizer kind {model!r} is not supported; gpt2 and llama are")


def _byte_level_bpe(file: GGUFFile, chat_template: str | None) -> HuggingFaceTokenizer:
    name = _get(file, "tokenizer.ggml.pre", str, "default")
    rule = WORD_RULES.get(name)
    if rule is None:
        raise ModelLoadError(f"{file.path}: tokenizer.ggml.pre {name!r} is not supported; {', '.join(WORD_RULES)} are")
    tokens, kinds = _tokens(file), _kinds(file)
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise ModelLoadError(f"{file.path}: damaged: tokenizer.ggml.tokens holds a token twice")
    merges = [merge.partition(" ") for merge in _strings(file, "tokenizer.ggml.merges")]
    try:
        library = tokenizers.Tokenizer(
            tokenizers.models.BPE(
                vocab=vocabulary,
                merges=[(left, right) for left, _, right in merges],
                ignore_merges=rule.ignore_merges,
            )
        )
    except Exception as error:  # the library raises nothing narrower
        reason = escaped(str(error))  # it quotes a token
        raise ModelLoadError(f"{file.path}: damaged: the tokenizer's merges do not fit its tokens: {reason}") from error
    if rule.normalizer is not None:
        library.normalizer = rule.normalizer()
    library.pre_tokenizer = rule.pre_tokenizer()
    library.decoder = tokenizers.decoders.ByteLevel()
    special = _special(file, len(tokens), kinds)
    own = np.flatnonzero(np.isin(kinds, (_UNKNOWN, _CONTROL, _USER_DEFINED))).tolist()
    library.add_tokens(
        [
            tokenizers.AddedToken(tokens[i], special=i in special.all_ids(), normalized=False)
            for i in sorted({*own, *special.all_ids()})
        ]
    )
    add_bos = _get(file, "tokenizer.ggml.add_bos_token", bool, rule.adds_bos)
    add_eos = _get(file, "tokenizer.ggml.add_eos_token", bool, False)
    surround(library, special, add_bos=add_bos, add_eos=add_eos)
    return HuggingFaceTokenizer(
        library,
        vocab_size=len(tokens),
        decoder=BYTE_LEVEL,
        special=special,
        chat_template=chat_template,
    )


def _sentencepiece_bpe(file: GGUFFile, chat_template: str | None) -> SentencePieceTokenizer:
    tokens, kinds = _tokens(file), _kinds(file)
    special = _special(file, len(tokens), kinds)
    vocabulary = open_vocabulary(_model_proto(file, tokens, kinds, special), file.path)
    around = Around(
        add_bos=_get(file, "tokenizer.ggml.add_bos_token", bool, True),
        add_eos=_get(file, "tokenizer.ggml.add_eos_token", bool, False),
        prefix_space=_get(file, "tokenizer.ggml.add_space_prefix", bool, True),
    )
    return SentencePieceTokenizer(vocabulary, special=special, around=around, chat_template=chat_template)


def _model_proto(file: GGUFFile, tokens: list[str], kinds: np.ndarray, special: SpecialIds) -> ModelProto:
    """The SentencePiece model whose pieces these are."""
    if file.metadata.get("tokenizer.ggml.precompiled_charsmap") is not None:
        raise ModelLoadError(f"{file.path}: tokenizer.ggml.precompiled_charsmap is not supported")
    scores = _numbers(file, "tokenizer.ggml.scores", len(tokens))
    if special.unk_id is None:
        raise ModelLoadError(f"{file.path}: the tokenizer has no unknown token")
    kinds = np.where(kinds == _UNKNOWN, _CONTROL, kinds)  # the library takes one unknown token
    kinds[special.unk_id] = _UNKNOWN
    proto = ModelProto()
    add = proto.pieces.add
    for token, score, kind in zip(tokens, scores.tolist(), kinds.tolist(), strict=True):
        if kind == _NORMAL:
            add(piece=token, score=score)  # normal is the default: a quarter faster, and nearly all are
        else:
            # llama.cpp's converter writes the spaces of user-defined tokens as spaces.
            piece = token.replace(" ", SPACE) if kind == _USER_DEFINED else token
            add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = bool((kinds == _BYTE).any())
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = _get(file, "tokenizer.ggml.remove_extra_whitespaces", bool, False)
    return proto


def _special(file: GGUFFile, vocab_size: int, kinds: np.ndarray) -> SpecialIds:
    def named(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in file.metadata:
            return None
        token_id = _get(file, key, int)
        if not 0 <= token_id < vocab_size:
            raise ModelLoadError(f"{file.path}: damaged: {key} is {token_id}, and there are {vocab_size} tokens")
        return token_id

    eos_id, unknown = named("eos"), np.flatnonzero(kinds == _UNKNOWN).tolist()
    ends = (eos_id, named("eot"), named("eom"))
    return SpecialIds(
        bos_id=named("bos"),
        eos_id=eos_id,
        pad_id=named("padding"),
        unk_id=named("unknown") if not unknown else unknown[0],
        eos_ids=tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None)),
        others=frozenset(np.flatnonzero(np.isin(kinds, (_UNKNOWN, _CONTROL))).tolist()),
    )


def _tokens(file: GGUFFile) -> list[str]:
    tokens = _strings(file, "tokenizer.ggml.tokens")
    if not tokens:
        raise ModelLoadError(f"{file.path}: the tokenizer has no tokens")
    return tokens


def _kinds(file: GGUFFile) -> np.ndarray:
    """The type of each token; one that the format does not know counts as normal."""
    size = len(_tokens(file))
    if "tokenizer.ggml.token_type" not in file.metadata:
        return np.full(size, _NORMAL)
    kinds = _numbers(file, "tokenizer.ggml.token_type", size)
    return np.where((kinds < _NORMAL) | (kinds > _BYTE), _NORMAL, kinds)


def _strings(file: GGUFFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list):
        raise ModelLoadError(f"{file.path}: {key} must be an array of strings, got {_kind_of(value)}")
    return value


def _numbers(file: GGUFFile, key: str, size: int) -> np.ndarray:
    value = file.metadata.get(key)
    if not isinstance(value, np.ndarray) or len(value) != size:
        raise ModelLoadError(f"{file.path}: {key} must be an array of {size} numbers, got {_kind_of(value)}")
    return value


def _get(file: GGUFFile, key: str, kind: type[T], default: T | None = None) -> T:
    value = file.metadata.get(key, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ModelLoadError(f"{file.path}: {key} must be a {kind.__name__}, got {_kind_of(value)}")
    return value


def _kind_of(value: object) -> str:
    if value is None:
        return "nothing"
    return f"{len(value)} of them" if isinstance(value, np.ndarray) else type(value).__name__
