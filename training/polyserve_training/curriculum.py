"""From a recipe's stages and the streams to the plan: which stream has which share when, and the samples of a step.

stream   SOURCE/LANGUAGE. A stage's groups are gone through in order; a stream belongs to the first that names it, and
         one that none names is not read. Groups divide a stage by their shares, languages a group by its sampling, and
         sources a language by their tokens
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from polyserve.errors import TrainingError
from polyserve_training.config import Group, Recipe, Stage
from polyserve_training.data.languages import smoothed, unimax
from polyserve_training.data.mixture import Mixture, Sample, StagePlan, apportion
from polyserve_training.data.packing import Packed, RowSource, pack


@dataclass(frozen=True, slots=True)
class Planned:
    """A stream in a stage."""

    stage: str
    stream: str
    share: float  # of the stage's rows
    epochs: float  # of the stream that will have been read at the stage's end


class Curriculum:
    """The batches of every step."""

    def __init__(self, recipe: Recipe, streams: Mapping[str, RowSource], *, rank: int = 0, size: int = 1) -> None:
        """streams: by name, SOURCE/LANGUAGE.  rank, size: this process among those that share the rows of a step.

        Raises TrainingError if a stage asks for what there is not, or rows cannot be shared evenly."""
        self._rows, self._streams = recipe.batch.rows, streams
        self._rank, self._size = rank, size
        self._micro_rows = recipe.batch.micro_rows or self._rows // size
        if self._rows % size or not self._micro_rows or (self._rows // size) % self._micro_rows:
            raise TrainingError(
                f"batch: {size} processes cannot share {self._rows} rows evenly, {self._micro_rows or 1} at once"
            )
        sizes = {name: stream.num_tokens for name, stream in streams.items()}
        stages = []
        for stage in recipe.stages:
            num_samples = stage.steps * self._rows
            shares = shares_of(stage, sizes, budget=num_samples * recipe.batch.context)
            counts = apportion(shares, recipe.block, stage=stage.name)
            stages.append(StagePlan(stage.name, num_samples, counts))
        self.mixture = Mixture(stages, {name: stream.num_rows for name, stream in streams.items()}, seed=recipe.seed)

    def samples(self, step: int) -> list[Sample]:
        """What step number `step`, from 0, learns from."""
        return [self.mixture.locate(step * self._rows + row) for row in range(self._rows)]

    def batch(self, step: int) -> list[Packed]:
        """This process's part of it, as lines of `micro_rows` rows that are computed one after another."""
        samples = self.samples(step)[self._rank :: self._size]
        rows = [self._streams[sample.stream].row(sample.row, sample.epoch) for sample in samples]
        return [pack(rows[first : first + self._micro_rows]) for first in range(0, len(rows), self._micro_rows)]

    def stage_of(self, step: int) -> str:
        for stage in self.mixture.stages:
            step -= stage.num_samples // self._rows
            if step < 0:
                return stage.name
        raise ValueError("there is no stage with so late a step")

    def table(self) -> list[Planned]:
        """Every stream of every stage."""
        rows = []
        for number, stage in enumerate(self.mixture.stages):
            drawn, block = self.mixture.drawn(number), sum(stage.counts.values())
            for name, count in stage.counts.items():
                rows.append(Planned(stage.name, name, count / block, drawn[name] / self._streams[name].num_rows))
        return rows


def shares_of(stage: Stage, sizes: Mapping[str, int], *, budget: float) -> dict[str, float]:
    """The share of each stream in a stage.  sizes: tokens of each stream.  budget: tokens that the stage reads."""
    members = _members(stage, sizes)
    whole = sum(group.share for group in stage.mixture)
    shares: dict[str, float] = {}
    for group, names in zip(stage.mixture, members, strict=True):
        if not group.share:
            continue
        by_language: dict[str, int] = {}
        for name in names:
            language = name.partition("/")[2]
            by_language[language] = by_language.get(language, 0) + sizes[name]
        part = group.share / whole
        divided = _divide(group, by_language, budget * part)
        for name in names:
            language = name.partition("/")[2]
            shares[name] = part * divided[language] * sizes[name] / by_language[language]
    return shares


def _members(stage: Stage, sizes: Mapping[str, int]) -> list[list[str]]:
    """The streams of each group. Raises TrainingError for a pattern that names none."""
    for pattern in (pattern for group in stage.mixture for pattern in group.streams):
        if not any(fnmatchcase(name, pattern) for name in sizes):
            raise TrainingError(f"stages: no data for {pattern} in stage {stage.name}; there is {', '.join(sizes)}")
    members: list[list[str]] = [[] for _ in stage.mixture]
    for name in sizes:
        for group, names in zip(stage.mixture, members, strict=True):
            if any(fnmatchcase(name, pattern) for pattern in group.streams):
                names.append(name)
                break
    for group, names in zip(stage.mixture, members, strict=True):
        if not names:
            raise TrainingError(
                f"stages: {', '.join(group.streams)} in stage {stage.name}: all of its streams are earlier groups'"
            )
    return members


def _divide(group: Group, sizes: Mapping[str, int], budget: float) -> dict[str, float]:
    if group.sampling == "unimax":
        return unimax(sizes, budget=budget, max_epochs=4.0 if group.max_epochs is None else group.max_epochs)
    if group.sampling == "smoothed":
        return smoothed(sizes, alpha=0.3 if group.alpha is None else group.alpha)
    return smoothed(sizes, alpha=1.0)
