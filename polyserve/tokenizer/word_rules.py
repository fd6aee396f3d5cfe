"""How byte-level BPE cuts a text into words before it merges, by the names that GGUF files use (`tokenizer.ggml.pre`).

Only rules known exactly from a family's own `tokenizer.json` are here: one nearly right gives ids nearly right.
gpt-2, default               GPT-2's pattern
smollm                       every digit alone, then GPT-2's pattern
bloom                        its own pattern
llama-bpe, llama3, llama-v3  Llama 3's pattern, numbers by three digits; a word that is a token is taken whole
qwen2                        Llama 3's pattern but every digit alone, over text in normal form C
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.normalizers import NFC, Normalizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")


@dataclass(frozen=True, slots=True)
class WordRule:
    pre_tokenizer: Callable[[], PreTokenizer]
    normalizer: Callable[[], Normalizer] | None = None
    ignore_merges: bool = False  # a word that is a token is not merged from its parts
    adds_bos: bool = False  # where the file does not say


def _gpt2() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False)


def _smollm() -> PreTokenizer:
    return Sequence([Digits(individual_digits=True), _gpt2()])


def _by_pattern(pattern: str) -> Callable[[], PreTokenizer]:
    """Each match is a word, and so is what lies between two matches."""
    return lambda: Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


_LLAMA3_RULE = WordRule(_by_pattern(_LLAMA3), ignore_merges=True, adds_bos=True)

WORD_RULES: dict[str, WordRule] = {
    "default": WordRule(_gpt2),
    "gpt-2": WordRule(_gpt2),
    "smollm": WordRule(_smollm),
    "bloom": WordRule(_by_pattern(_BLOOM)),
    "llama-bpe": _LLAMA3_RULE,
    "llama3": _LLAMA3_RULE,
    "llama-v3": _LLAMA3_RULE,
    "qwen2": WordRule(_by_pattern(_QWEN2), normalizer=NFC),
}
