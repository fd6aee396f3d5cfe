"""What the commands of training are told, as frozen values that check themselves.

TokenizerOptions, TokenizeOptions   the command line makes flags of them
Recipe and its parts                a YAML file (recipe.py): what is not given has a default, or is an error by name
"""

import math
from dataclasses import dataclass
from typing import Literal

from polyserve.config import option

MIN_VOCAB_SIZE, MAX_VOCAB_SIZE = 300, 256_000


def _at_least(recipe: object, minimum: int, *names: str) -> None:
    for name in names:
        if getattr(recipe, name) < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {getattr(recipe, name)}")


def _check_sources(sources: dict[str, str]) -> None:
    if not sources:
        raise ValueError("sources must name at least one data set")
    for name in sources:
        if "/" in name or not name:
            raise ValueError(f"the name of a source must be a word without a slash, got {name!r}")


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
        _at_least(self, 1, "sample_bytes", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """How documents are cleaned."""

    language: str | None = option(None, "language of every document; default: its field, else the file's name: de.txt")
    identify: bool = option(True, "identify languages, and drop documents that are not in the one they say")
    min_score: float = option(0.5, "least certainty of the identified language, from 0 to 1")
    filter: bool = option(True, "fix lines, and drop documents by the rules of their language")
    min_words: int | None = option(
        None, "least words of a document; in languages without, 2 characters a word; default: 50"
    )
    deduplicate: bool = option(True, "drop documents that nearly repeat one before")
    seed: int = option(0, "of the hashes that near repetition is found by")

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must be from 0 to 1, got {self.min_score}")
        if self.min_words is not None and not self.filter:
            raise ValueError("min_words has no effect without filter")
        if self.min_words is not None and self.min_words < 1:
            raise ValueError(f"min_words must be at least 1, got {self.min_words}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeOptions:
    """How documents become shards of tokens."""

    language: str | None = option(None, "language of every document; default: its field, else the file's name: de.txt")
    threads: int = option(2, "threads that encode documents")
    shard_tokens: int = option(2**28, "a shard is closed when it has this many tokens")

    def __post_init__(self) -> None:
        _at_least(self, 1, "threads", "shard_tokens")


Sampling = Literal["natural", "smoothed", "unimax"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """A decoder that is made new from its shape, or `path`: a folder with one to go on with, of any family."""

    path: str | None = None
    family: Literal["polylm", "gpt2", "bloom", "llama"] | None = None
    vocab_size: int | None = None  # default: the tokenizer's
    hidden_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None  # llama alone; default: num_heads
    mlp_size: int | None = None  # default: 4 hidden_size
    max_len: int | None = None  # default: the batch's context
    init_std: float | None = None  # default: 0.02; products into the residual stream have it / sqrt(2 num_layers)

    def __post_init__(self) -> None:
        shape = ("family", "hidden_size", "num_layers", "num_heads")
        given = [name for name in self.__slots__ if name != "path" and getattr(self, name) is not None]
        missing = [name for name in shape if name not in given]
        if self.path is not None and given:
            raise ValueError(f"{given[0]} has no effect beside path, which brings its own")
        if self.path is None and missing:
            raise ValueError(f"{missing[0]} is missing; or give path, a folder with a model to go on with")
        if self.num_kv_heads is not None and self.family != "llama":
            raise ValueError(f"num_kv_heads has no effect on {self.family}")
        if self.family == "bloom" and self.mlp_size is not None:
            raise ValueError("mlp_size has no effect on bloom, which has 4 hidden_size")
        _at_least(self, 1, *(name for name in given if name not in ("family", "init_std")))
        if self.init_std is not None and self.init_std <= 0:
            raise ValueError(f"init_std must be above 0, got {self.init_std}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecipe:
    """Where tokens come from."""

    sources: dict[str, str]  # by name: folders that `polyserve data tokenize` made
    verify: Literal["full", "size"] = "full"  # what is looked at before the first step: every byte, or sizes alone

    def __post_init__(self) -> None:
        _check_sources(self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRecipe:
    """Conversations to learn answers from; see data/conversations.py."""

    sources: dict[str, str]  # by name: a file of JSON lines, or a folder of such files
    template: str | None = None  # a jinja file or a built-in one's name; default: the tokenizer's own

    def __post_init__(self) -> None:
        _check_sources(self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Part of a mixture: some streams, which are SOURCE/LANGUAGE, and how they divide the group's share."""

    streams: tuple[str, ...] = ("*/*",)  # patterns; a stream belongs to the first group that names it
    share: float = 1.0  # in proportion to the other groups
    sampling: Sampling = "natural"  # among languages; within one, sources go by their size
    alpha: float | None = None  # smoothed; default: 0.3
    max_epochs: float | None = None  # unimax; default: 4

    def __post_init__(self) -> None:
        if not 0 <= self.share < math.inf:
            raise ValueError(f"share must be 0 or more, got {self.share}")
        if self.alpha is not None and self.sampling != "smoothed":
            raise ValueError(f"alpha has no effect on sampling {self.sampling}")
        if self.max_epochs is not None and self.sampling != "unimax":
            raise ValueError(f"max_epochs has no effect on sampling {self.sampling}")
        if self.max_epochs is not None and self.max_epochs <= 0:
            raise ValueError(f"max_epochs must be above 0, got {self.max_epochs}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A span of steps with one mixture."""

    name: str
    steps: int
    mixture: tuple[Group, ...] = (Group(),)

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps")
        if not sum(group.share for group in self.mixture) > 0:
            raise ValueError(f"the mixture of stage {self.name} sums to nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecipe:
    """What one step learns from."""

    rows: int
    context: int  # tokens in a row
    micro_rows: int | None = None  # rows that are computed at once; default: all

    def __post_init__(self) -> None:
        _at_least(self, 1, "rows", "context")
        if self.micro_rows is not None and (self.micro_rows < 1 or self.rows % self.micro_rows):
            raise ValueError(f"micro_rows must divide the {self.rows} rows of a step, got {self.micro_rows}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerRecipe:
    """AdamW. Weights that are not matrices (biases, norms) do not decay."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0  # of the gradient's norm; null: never

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1, got {getattr(self, name)}")
        if not self.lr > 0 or not self.eps > 0:
            raise ValueError(f"lr and eps must be above 0, got {self.lr} and {self.eps}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, or null, got {self.clip}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecipe:
    """The learning rate over all stages; see schedule.py."""

    kind: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int = 0
    warmup_from: float = 0.0  # learning rate of the step before the first
    final: float = 0.1  # at the end, of the peak
    decay_steps: int | None = None  # cosine: the end of the decay, default the last step; wsd: its length, default 10 %

    def __post_init__(self) -> None:
        _at_least(self, 0, "warmup_steps")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"decay_steps must be at least 1, got {self.decay_steps}")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final must be from 0 to 1, got {self.final}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeRecipe:
    """Steps whose loss or gradient stands out are skipped; so is, always, one that is not finite."""

    sigmas: float | None = 6.0  # null: none stands out
    window: int = 128  # steps that are looked back at; half of them must be there

    def __post_init__(self) -> None:
        _at_least(self, 2, "window")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecipe:
    every: int = 500  # steps
    keep: int = 3
    asynchronous: bool = True  # written while the next steps compute; needs memory for a copy

    def __post_init__(self) -> None:
        _at_least(self, 1, "every", "keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecipe:
    """Loss by language on the first rows of what is not trained on: data sets, or conversations as in ChatRecipe."""

    sources: dict[str, str]
    every: int = 100  # steps; and after the last
    rows: int = 16  # of each stream

    def __post_init__(self) -> None:
        _check_sources(self.sources)
        _at_least(self, 1, "every", "rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeRecipe:
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of products; master weights and the residual stream are fp32
    backend: str | None = None  # of the kernels; default: the best one for the device
    threads: int | None = None
    recompute: bool = False  # layers keep their inputs alone, and compute again when gradients are taken
    peak_tflops: float | None = None  # of the device, for the MFU in the log


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelRecipe:
    """How the processes that torchrun started divide a run; see parallel.py."""

    data: int | None = None  # groups of processes that share a step's rows; default: as many as there are
    tensor: int = 1  # processes of a group, which divide every layer and the vocabulary
    shard: bool = True  # groups divide weights, gradients and moments (FSDP2); false: each has all of them

    def __post_init__(self) -> None:
        _at_least(self, 1, "tensor", *(() if self.data is None else ("data",)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A run: everything that decides what is learned, and where it is kept."""

    run: str  # folder of the run
    tokenizer: str  # folder
    model: ModelRecipe
    stages: tuple[Stage, ...]
    batch: BatchRecipe
    optimizer: OptimizerRecipe
    data: DataRecipe | None = None  # either text
    chat: ChatRecipe | None = None  # or conversations
    block: int = 2048  # rows in which every stream has its exact share
    schedule: ScheduleRecipe = ScheduleRecipe()
    z_loss: float = 0.0
    dropout: float = 0.0  # of what embedding, attention and MLP bring, this part is left out
    spikes: SpikeRecipe = SpikeRecipe()
    checkpoints: CheckpointRecipe = CheckpointRecipe()
    validation: ValidationRecipe | None = None
    compute: ComputeRecipe = ComputeRecipe()
    parallel: ParallelRecipe = ParallelRecipe()
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()  # who draws the run besides `polyserve train report`
    seed: int = 0

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"stages must be one or more, each with a name of its own, got {names}")
        if (self.data is None) == (self.chat is None):
            raise ValueError("either data or chat must be given, and not both")
        _at_least(self, 1, "block")
        if self.z_loss < 0:
            raise ValueError(f"z_loss must be 0 or more, got {self.z_loss}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {self.dropout}")

    @property
    def num_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)
