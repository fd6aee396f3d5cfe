"""Tiny real tokenizers in a checkpoint folder, trained on the sentences in `texts`: every kind that PolyServe reads.

SentencePiece     <unk> 0, <s> 1, </s> 2, bytes 3 to 258, then learned pieces     tokenizer.model, tokenizer_config.json
byte-level BPE    <unk> 0, <s> 1, </s> 2, bytes 3 to 258, then learned tokens     tokenizer.json, tokenizer_config.json
Any text can be encoded by both.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import sentencepiece
from gguf import GGUFWriter
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import PreTokenizer

from support.texts import AWKWARD, LANGUAGES

Metadata = Mapping[str, bool | int | str]

TRAINING_TEXTS = [*LANGUAGES.values(), AWKWARD["code"], AWKWARD["contractions"], AWKWARD["digits"]]

POLYLM_CONFIG: dict[str, object] = {
    "add_bos_token": False,
    "add_eos_token": False,
    "bos_token": {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": True, "single_word": False},
    "eos_token": {"content": "</s>", "lstrip": False, "rstrip": False, "normalized": True, "single_word": False},
    "unk_token": {"content": "<unk>", "lstrip": False, "rstrip": False, "normalized": True, "single_word": False},
    "pad_token": None,
    "clean_up_tokenization_spaces": False,
    "legacy": False,
    "tokenizer_class": "LlamaTokenizer",
}


def train_sentencepiece(
    vocab_size: int, *, model_type: str = "bpe", dummy_prefix: bool = True, user_defined: tuple[str, ...] = ()
) -> bytes:
    """A serialised SentencePiece model with byte fallback that loses nothing of a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXTS * 3),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix,
        split_digits=True,
        user_defined_symbols=list(user_defined),
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_sentencepiece(
    folder: Path, vocab_size: int, *, model_type: str = "bpe", config: Mapping[str, object] = POLYLM_CONFIG
) -> Path:
    """A folder with the tokenizer of a PolyLM checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(vocab_size, model_type=model_type))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def train_byte_level_bpe(vocab_size: int, *, pre_tokenizer: PreTokenizer | None = None) -> Tokenizer:
    """As GPT-2, BLOOM and Llama 3 have it; words are cut as GPT-2 does unless `pre_tokenizer` cuts them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXTS, trainer)
    return tokenizer


def write_byte_level_bpe(folder: Path, vocab_size: int, *, config: Mapping[str, object] | None = None) -> Path:
    """A folder with a byte-level BPE tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    train_byte_level_bpe(vocab_size).save(str(folder / "tokenizer.json"))
    config = config or {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_gguf_sentencepiece(path: Path, model: bytes, *, metadata: Metadata | None = None) -> Path:
    """The tokenizer of a SentencePiece model as llama.cpp's converter puts it into a GGUF file."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    # User-defined pieces are written with plain spaces.
    writer.add_token_list([p.piece.replace("▁", " ") if p.type == 4 else p.piece for p in proto.pieces])
    writer.add_token_scores([piece.score for piece in proto.pieces])
    writer.add_token_types([piece.type for piece in proto.pieces])
    for name, piece in (("bos", "<s>"), ("eos", "</s>"), ("unknown", "<unk>")):
        ids = [i for i, p in enumerate(proto.pieces) if p.piece == piece]
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", ids[0])
    return _finish(writer, path, metadata)


def write_gguf_byte_level_bpe(
    path: Path, tokenizer: Tokenizer, *, pre: str, metadata: Metadata | None = None, more_tokens: Sequence[str] = ()
) -> Path:
    """A byte-level BPE tokenizer as llama.cpp's converter puts it into a GGUF file; three tokens are control tokens."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].__getitem__), *more_tokens]
    writer = GGUFWriter(path, "gpt2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<unk>", "<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    return _finish(writer, path, metadata)


def _finish(writer: GGUFWriter, path: Path, metadata: Metadata | None) -> Path:
    for key, value in (metadata or {}).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
