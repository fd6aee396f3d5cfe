"""Ids of SmolLM2 and Gemma 3 against the textbook algorithm, written out here: slow, and without a tokenizer library.

byte-level BPE      cut words, turn bytes into GPT-2's alphabet, join the pair that was learned first until none is left
SentencePiece BPE   ▁ for spaces, user-defined pieces first, join the pair with the best score, then bytes for the rest
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex

from polyserve.gguf import GGUFFile, read_gguf
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer
from support.texts import AWKWARD, LANGUAGES

pytestmark = pytest.mark.model_package

GPT2_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
DIGIT_OR_REST = regex.compile(r"\p{N}|[^\p{N}]+")


def strings(file: GGUFFile, key: str) -> list[str]:
    value = file.metadata[key]
    assert isinstance(value, list)
    return value


class ByteLevelReference:
    """SmolLM2: every digit is a word of its own, then GPT-2's way of cutting words."""

    def __init__(self, file: GGUFFile) -> None:
        self.ids = {token: i for i, token in enumerate(strings(file, "tokenizer.ggml.tokens"))}
        merges = strings(file, "tokenizer.ggml.merges")
        self.rank = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
        moved = [byte for byte in range(256) if byte not in kept]
        self.alphabet = {byte: chr(byte) for byte in kept} | {byte: chr(256 + i) for i, byte in enumerate(moved)}

    def encode(self, text: str) -> list[int]:
        words = [word for part in DIGIT_OR_REST.findall(text) for word in GPT2_WORDS.findall(part)]
        return [self.ids[token] for word in words for token in self.merge(word)]

    def merge(self, word: str) -> list[str]:
        symbols = [self.alphabet[byte] for byte in word.encode()]
        while len(symbols) > 1:
            ranks = [self.rank.get(pair, len(self.rank)) for pair in pairwise(symbols)]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] == len(self.rank):
                break
            symbols[best : best + 2] = ["".join(symbols[best : best + 2])]
        return symbols


class SentencePieceReference:
    """Gemma: no space before the text, no words; the pair whose union has the best score is joined first."""

    def __init__(self, file: GGUFFile) -> None:
        tokens = strings(file, "tokenizer.ggml.tokens")
        kinds, scores = file.metadata["tokenizer.ggml.token_type"], file.metadata["tokenizer.ggml.scores"]
        assert isinstance(kinds, np.ndarray)
        assert isinstance(scores, np.ndarray)
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.score = {token: scores[i] for i, token in enumerate(tokens) if kinds[i] == 1}
        own = sorted((token for i, token in enumerate(tokens) if kinds[i] == 4), key=len, reverse=True)
        self.own_or_rest = regex.compile("(" + "|".join(map(regex.escape, own)) + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self.own_or_rest.split(text)):
            ids += [self.ids[part]] if i % 2 else [j for symbol in self.merge(part) for j in self.ids_of(symbol)]
        return ids

    def merge(self, part: str) -> list[str]:
        symbols = list(part.replace(" ", "▁"))
        while len(symbols) > 1:
            joined = [a + b for a, b in pairwise(symbols)]
            scores = [self.score.get(symbol, -np.inf) for symbol in joined]
            best = int(np.argmax(scores))
            if scores[best] == -np.inf:
                break
            symbols[best : best + 2] = [joined[best]]
        return symbols

    def ids_of(self, symbol: str) -> list[int]:
        if symbol in self.ids:
            return [self.ids[symbol]]
        return [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path) -> Tokenizer:
    return load_tokenizer(smollm2_file)


@pytest.fixture(scope="module")
def smollm2_reference(smollm2_file: Path) -> ByteLevelReference:
    return ByteLevelReference(read_gguf(smollm2_file))


@pytest.fixture(scope="module")
def gemma3(gemma3_file: Path) -> Tokenizer:
    return load_tokenizer(gemma3_file)


@pytest.fixture(scope="module")
def gemma3_reference(gemma3_file: Path) -> SentencePieceReference:
    return SentencePieceReference(read_gguf(gemma3_file))


def test_smollm2_ids_are_those_of_textbook_merging(
    smollm2: Tokenizer, smollm2_reference: ByteLevelReference, text: str
) -> None:
    assert smollm2.encode(text) == smollm2_reference.encode(text)
    assert smollm2.decode(smollm2.encode(text)) == text


def test_gemma3_ids_are_those_of_textbook_merging(
    gemma3: Tokenizer, gemma3_reference: SentencePieceReference, text: str
) -> None:
    assert gemma3.encode(text) == [2, *gemma3_reference.encode(text)]
    assert gemma3.decode(gemma3.encode(text)) == text


def test_all_texts_in_one_are_tokenised_alike(
    smollm2: Tokenizer,
    smollm2_reference: ByteLevelReference,
    gemma3: Tokenizer,
    gemma3_reference: SentencePieceReference,
) -> None:
    text = "\n".join([*LANGUAGES.values(), AWKWARD["code"], AWKWARD["markup"]])
    assert smollm2.encode(text) == smollm2_reference.encode(text)
    assert gemma3.encode(text, add_special_tokens=False) == gemma3_reference.encode(text)


def test_smollm2_is_an_instruction_model_without_bos(smollm2: Tokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.adds_bos) == (49_152, False)
    assert (smollm2.bos_token, smollm2.eos_token, smollm2.eos_ids) == ("<|im_start|>", "<|im_end|>", (2,))
    assert smollm2.encode("<|im_start|>user\nhi<|im_end|>") == [1, 4093, 198, 6004, 2]


def test_gemma3_wants_bos_and_no_space_before_a_text(gemma3: Tokenizer) -> None:
    assert (gemma3.vocab_size, gemma3.adds_bos, gemma3.bos_id, gemma3.eos_ids) == (262_144, True, 2, (1,))
    assert gemma3.encode("<start_of_turn>user\nhi<end_of_turn>", add_special_tokens=False)[0] == 105
    assert gemma3.token_bytes(gemma3.encode("Hello")[1]) == b"Hello"


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_every_token_has_bytes(request: pytest.FixtureRequest, name: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    assert all(tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size))
