"""Tiny real tokenizers, written beside tiny checkpoints: byte-level BPE, or SentencePiece for PolyLM and Gemma.

Both know every byte, so that any text can be encoded, and a few hundred pieces learned from SAMPLE.
PolyLM   unk 0, bos 1, eos 2, bytes 3 to 258      Gemma   pad 0, eos 1, bos 2, unk 3, bytes 4 to 259
byte-level BPE   unk 0, bos 1, eos 2, bytes 3 to 258
"""

import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCEPIECE_FAMILIES = ("polylm", "gemma3")
SAMPLE = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Once upon a time there was a small house on the hill where the three of them lived.",
    "Die Hauptstadt von Deutschland ist Berlin, und die Hauptstadt von Frankreich ist Paris.",
    "La capitale de la France est Paris ; la ville est grande et belle.",
    "La casa es grande y el perro es pequeño, pero la casa de la abuela es más grande.",
    "Москва является столицей России, а Париж является столицей Франции.",
    "北京是中国的首都，巴黎是法国的首都。",
    "東京は日本の首都であり、パリはフランスの首都です。",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_tokenizer(folder: Path, family: str, *, vocab_size: int) -> None:
    """Write the tokenizer of a family, with at most `vocab_size` tokens, and its configuration into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    gemma = family == "gemma3"
    config: dict[str, object] = {
        "add_bos_token": gemma,
        "add_eos_token": False,
        "bos_token": "<bos>" if gemma else "<s>",
        "eos_token": "<eos>" if gemma else "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>" if gemma else None,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
    }
    if family in SENTENCEPIECE_FAMILIES:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(family, vocab_size=vocab_size))
        config["tokenizer_class"] = "GemmaTokenizer" if gemma else "LlamaTokenizer"
    else:
        (folder / "tokenizer.json").write_text(byte_level_bpe(vocab_size=vocab_size).to_str())
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def sentencepiece_model(family: str, *, vocab_size: int) -> bytes:
    """A serialised SentencePiece BPE model with byte fallback, laid out as PolyLM's or as Gemma's."""
    model = io.BytesIO()
    ids = (
        {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
        if family == "gemma3"
        else {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    )
    pieces = {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"} if family == "gemma3" else {}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAMPLE * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=family != "gemma3",
        split_digits=True,
        num_threads=1,
        minloglevel=2,
        **ids,
        **pieces,
    )
    return model.getvalue()


def byte_level_bpe(*, vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer, as GPT-2, BLOOM and Llama 3 have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE * 3, trainer)
    return tokenizer
