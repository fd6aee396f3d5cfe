"""Train a tokenizer: SentencePiece BPE that loses nothing, on a sample in which small languages are heard.

Pieces     digits stand alone; what no piece covers falls back to bytes; text is not normalised, and nothing is put
           before it. So decode(encode(text)) == text, spaces and newlines included
Layout     <unk> 0, <s> 1, </s> 2, bytes 3 to 258, pieces from 259 on: PolyLM's and Llama's. The last id is the
           character U+2581, by which SentencePiece writes a space: as an added token it keeps its meaning
Sample     a budget of bytes, divided among languages (data/languages.py). A document comes in as often as its
           language's share asks for, by a hash of its number and the seed, so that the sample can be drawn again
Source     PolyLM, https://arxiv.org/abs/2307.06018, section 3.2; https://arxiv.org/abs/1808.06226
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import sentencepiece
from tqdm import tqdm

from polyserve.errors import TrainingError
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer
from polyserve_training.config import TokenizerOptions
from polyserve_training.data.documents import Document, find_files, read_documents
from polyserve_training.data.languages import smoothed, unimax
from polyserve_training.data.tokenize import encode_text

SPACE = "▁"
NUM_BYTES = 256
FIRST_PIECE = 3 + NUM_BYTES
_MAX_LINE_CHARS = 1000  # the trainer is slow at longer ones, and its own limit is in bytes
_REPORT_BYTES = 2**20  # of each language, for the report


@dataclass(frozen=True, slots=True)
class Fertility:
    """How a language comes out: less is better, but for bytes per token."""

    documents: int
    bytes: int
    tokens: int
    tokens_per_word: float  # words between white space: says little of zh, ja and th
    tokens_per_character: float
    bytes_per_token: float
    byte_share: float  # part of the tokens that are single bytes, for want of a piece


def train_tokenizer(paths: Sequence[Path], out: Path, options: TokenizerOptions) -> dict[str, Fertility]:
    """Write a tokenizer's folder, with report.json, and return the report by language. Raises TrainingError."""
    if out.exists():
        raise TrainingError(f"{out}: exists already")
    files = find_files(paths)
    sizes = _sizes(files, options.language)
    rates = _rates(sizes, options)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _train(_sample(files, rates, options), partial / "tokenizer", options)
        write_settings(partial, last_id=options.vocab_size - 1)
        report = measure(load_tokenizer(partial), read_documents(files, language=options.language))
        values = {language: asdict(fertility) for language, fertility in report.items()}
        (partial / "report.json").write_text(json.dumps({"rates": rates, "languages": values}, indent=1))
        partial.rename(out)
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written: {error.strerror}") from error
    return report


def _sizes(files: Sequence[Path], language: str | None) -> dict[str, int]:
    """Bytes of text by language."""
    sizes: dict[str, int] = {}
    with tqdm(unit="B", unit_scale=True, desc="count") as bar:
        for document in read_documents(files, language=language):
            num_bytes = len(document.text.encode())
            sizes[document.language] = sizes.get(document.language, 0) + num_bytes
            bar.update(num_bytes)
    if not sizes:
        raise TrainingError(f"{', '.join(map(str, files))}: there is no document with text")
    return dict(sorted(sizes.items()))


def _rates(sizes: Mapping[str, int], options: TokenizerOptions) -> dict[str, float]:
    """How often each language's documents are read, by language."""
    budget = min(options.sample_bytes, sum(sizes.values()))
    if options.sampling == "unimax":
        shares = unimax(sizes, budget=budget, max_epochs=options.max_epochs)
    else:
        shares = smoothed(sizes, alpha=options.alpha)
    return {language: min(share * budget / sizes[language], options.max_epochs) for language, share in shares.items()}


def _sample(files: Sequence[Path], rates: Mapping[str, float], options: TokenizerOptions) -> Iterator[str]:
    """Lines of the documents in the sample."""
    for number, document in enumerate(read_documents(files, language=options.language)):
        draw = blake2b(f"{options.seed} {number}".encode(), digest_size=8).digest()
        rate = rates[document.language]
        copies = int(rate) + (int.from_bytes(draw, "little") / 2**64 < rate % 1)
        for _ in range(copies):
            yield from _lines(document)


def _lines(document: Document) -> Iterator[str]:
    for line in document.text.replace(SPACE, " ").split("\n"):
        for start in range(0, len(line), _MAX_LINE_CHARS):
            yield line[start : start + _MAX_LINE_CHARS]


def _train(lines: Iterator[str], prefix: Path, options: TokenizerOptions) -> None:
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_prefix=str(prefix),
            model_type="bpe",
            vocab_size=options.vocab_size - 1,  # the last id is SPACE's own
            character_coverage=options.character_coverage,
            num_threads=options.threads,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=8 * _MAX_LINE_CHARS,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise TrainingError(f"SentencePiece cannot train {options.vocab_size} tokens on this text: {reason}") from error
    prefix.with_suffix(".vocab").unlink()


def write_settings(folder: Path, *, last_id: int) -> None:
    """tokenizer_config.json: what Hugging Face's LlamaTokenizer, and ours, have to know beside the pieces."""
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_prefix_space": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None,
        "added_tokens_decoder": {
            str(last_id): {
                "content": SPACE,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
                "special": False,
            }
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def measure(tokenizer: Tokenizer, documents: Iterator[Document]) -> dict[str, Fertility]:
    """How each language comes out, on its first documents."""
    sums: dict[str, list[int]] = {}
    for document in documents:
        so_far = sums.setdefault(document.language, [0, 0, 0, 0, 0, 0])
        if so_far[1] >= _REPORT_BYTES:
            continue
        text = document.text
        ids = encode_text(tokenizer, text)
        num_single = sum(3 <= token_id < FIRST_PIECE for token_id in ids)
        counts = (1, len(text.encode()), len(ids), len(text.split()), len(text), num_single)
        sums[document.language] = [a + b for a, b in zip(so_far, counts, strict=True)]
    return {
        language: Fertility(
            documents=documents_,
            bytes=bytes_,
            tokens=tokens,
            tokens_per_word=tokens / max(words, 1),
            tokens_per_character=tokens / characters,
            bytes_per_token=bytes_ / tokens,
            byte_share=single / tokens,
        )
        for language, (documents_, bytes_, tokens, words, characters, single) in sorted(sums.items())
    }
