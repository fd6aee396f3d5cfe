"""What `polyserve tokenizer` and `polyserve data` are told: frozen values, from which the command line makes flags."""

from dataclasses import dataclass

from polyserve.config import option

MIN_VOCAB_SIZE, MAX_VOCAB_SIZE = 300, 256_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerOptions:
    """How a tokenizer is trained."""

    vocab_size: int = option(256_000, f"tokens in all, {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}")
    sampling: str = option("smoothed", "how languages share the sample", choices=("smoothed", "unimax"))
    alpha: float = option(0.3, "smoothed: a language's share is its part of the text to this power")
    max_epochs: float = option(8.0, "no language's text is read more often than this")
    sample_bytes: int = option(2**31, "text to train on, in bytes")
    character_coverage: float = option(0.9999, "part of the characters that get pieces; the rest are bytes")
    language: str | None = option(None, "language of every document; default: its field, else the file's name: de.txt")
    threads: int = option(2, "threads of the trainer")
    seed: int = option(0, "which documents are in the sample")

    def __post_init__(self) -> None:
        if not MIN_VOCAB_SIZE <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise ValueError(f"vocab_size must be {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}, got {self.vocab_size}")
        if self.sampling not in ("smoothed", "unimax"):
            raise ValueError(f"sampling must be smoothed or unimax, got {self.sampling!r}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, got {self.alpha}")
        if not 0 < self.character_coverage <= 1:
            raise ValueError(f"character_coverage must be above 0 and at most 1, got {self.character_coverage}")
        if not self.max_epochs > 0:
            raise ValueError(f"max_epochs must be above 0, got {self.max_epochs}")
        for name in ("sample_bytes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeOptions:
    """How documents become shards of tokens."""

    language: str | None = option(None, "language of every document; default: its field, else the file's name: de.txt")
    threads: int = option(2, "threads that encode documents")
    shard_tokens: int = option(2**28, "a shard is closed when it has this many tokens")

    def __post_init__(self) -> None:
        for name in ("threads", "shard_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
