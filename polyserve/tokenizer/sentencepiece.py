"""SentencePiece vocabularies, BPE or unigram as the model says, through the `sentencepiece` library.

Piece   a string in which ▁ stands for a space, a byte `<0xNN>`, or a token of its own (control, unknown)
Text    is cut at special tokens first; each part goes to the library alone. A vocabulary that wants a space before
        every text (`add_dummy_prefix`) gets it before the first part only, and not if the text begins with a special
        token: so do Llama tokenizers with `legacy=False`, and PolyLM's is one. `decode` takes that space away again
The library's `encode` releases the interpreter's lock (since 0.2.2), so a long text does not hold up other threads.
Source   https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # no stub

from polyserve.errors import ModelLoadError
from polyserve.tokenizer.added import AddedToken, AddedTokens
from polyserve.tokenizer.base import SpecialIds, Tokenizer
from polyserve.tokenizer.settings import TokenizerSettings, resolve_special

SPACE = "▁"
# Classes for which a token's id is its piece's place in the vocabulary. Others (XLM-RoBERTa's, for one) shift them.
_PLAIN_CLASSES = ("LlamaTokenizer", "LLaMATokenizer", "GemmaTokenizer", "PreTrainedTokenizer", "AutoTokenizer")
# Families whose tokenizer adds BOS unless its configuration says otherwise. PolyLM (model type gpt2) never saw one.
_BOS_BY_DEFAULT = ("llama", "gemma3", "gemma3_text")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A loaded model and what has to be known of its pieces."""

    processor: SentencePieceProcessor  # adds no space of its own before a text
    model_type: str  # unigram, bpe, word or char
    prefix_space: bool
    pieces: list[str]
    byte_ids: frozenset[int]
    special: SpecialIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a tokenizer puts around a text, and what it knows beyond its vocabulary."""

    add_bos: bool = False
    add_eos: bool = False
    prefix_space: bool = False
    added: tuple[AddedToken, ...] = ()


class SentencePieceTokenizer(Tokenizer):
    def __init__(
        self, vocabulary: Vocabulary, *, special: SpecialIds, around: Around, chat_template: str | None
    ) -> None:
        self.model_type = vocabulary.model_type
        self._processor = vocabulary.processor
        self._pieces = vocabulary.pieces
        self._byte_ids = vocabulary.byte_ids
        self._first_prefix = SPACE if around.prefix_space else ""
        self._before = [special.bos_id] if around.add_bos and special.bos_id is not None else []
        self._after = [special.eos_id] if around.add_eos and special.eos_id is not None else []
        pieces = {i: AddedToken(self._pieces[i], i) for i in special.all_ids() if i < len(self._pieces)}
        verbatim = pieces | {token.token_id: token for token in around.added}
        self._added = AddedTokens(verbatim.values())
        self._verbatim = {token_id: token.content for token_id, token in verbatim.items()}
        super().__init__(
            vocab_size=max(len(self._pieces), max(self._verbatim, default=0) + 1),
            special=special,
            adds_bos=bool(self._before),
            removes_leading_space=around.prefix_space,
            chat_template=chat_template,
        )

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(self._added.split(text)):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._processor.encode(self._first_prefix + part if number == 0 else part, out_type=int)
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._verbatim:
            return self._verbatim[token_id].encode()
        if token_id >= len(self._pieces):  # a hole between the vocabulary and added tokens
            return b""
        piece = self._pieces[token_id]
        if token_id in self._byte_ids:
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()


def load_sentencepiece(path: Path, settings: TokenizerSettings) -> SentencePieceTokenizer:
    """The tokenizer of a `tokenizer.model`; a ModelLoadError if it, or what the settings say of it, is unusable."""
    name = (settings.tokenizer_class or "AutoTokenizer").removesuffix("Fast")
    if name not in _PLAIN_CLASSES:
        raise ModelLoadError(f"{path}: tokenizer_class {name} is not supported over a SentencePiece model")
    for token in settings.added:
        if token.single_word:
            raise ModelLoadError(f"{path}: single_word is not supported (added token {token.content!r})")
    try:
        vocabulary = open_vocabulary(ModelProto.FromString(path.read_bytes()), path)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ModelLoadError(f"{path}: damaged, or not a SentencePiece model") from error
    ids = {piece: i for i, piece in enumerate(vocabulary.pieces)} | {t.content: t.token_id for t in settings.added}
    special = resolve_special(settings, source=path, ids=ids, fallback=vocabulary.special)
    add_bos = settings.model_type in _BOS_BY_DEFAULT if settings.add_bos is None else settings.add_bos
    prefix_space = vocabulary.prefix_space if settings.add_prefix_space is None else settings.add_prefix_space
    around = Around(add_bos=add_bos, add_eos=bool(settings.add_eos), prefix_space=prefix_space, added=settings.added)
    return SentencePieceTokenizer(vocabulary, special=special, around=around, chat_template=settings.chat_template)


def open_vocabulary(proto: ModelProto, source: Path) -> Vocabulary:
    """Hand a model to the library. `proto` is changed: the space before a text becomes this module's business."""
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    unsupported = {
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "escape_whitespaces = false": not normalizer.escape_whitespaces,
        "a denormalizer": bool(proto.denormalizer_spec.precompiled_charsmap),
    }
    for name, is_set in unsupported.items():
        if is_set:
            raise ModelLoadError(f"{source}: a SentencePiece model with {name} is not supported")
    prefix_space = bool(normalizer.add_dummy_prefix)
    normalizer.add_dummy_prefix = False
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(proto.SerializeToString())
        ids = list(range(len(processor)))
        pieces = processor.id_to_piece(ids)
    except (RuntimeError, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(f"{source}: damaged, or not a SentencePiece model: {reason}") from error
    return Vocabulary(
        processor=processor,
        model_type=type(trainer).ModelType.Name(trainer.model_type).lower(),
        prefix_space=prefix_space,
        pieces=pieces,
        byte_ids=_where(processor.is_byte(ids)),
        special=SpecialIds(
            bos_id=_or_none(processor.bos_id()),
            eos_id=_or_none(processor.eos_id()),
            pad_id=_or_none(processor.pad_id()),
            unk_id=_or_none(processor.unk_id()),
            others=_where(processor.is_control(ids)) | _where(processor.is_unknown(ids)),
        ),
    )


def _where(flags: list[bool]) -> frozenset[int]:
    return frozenset(i for i, flag in enumerate(flags) if flag)


def _or_none(token_id: int) -> int | None:
    return None if token_id < 0 else token_id
