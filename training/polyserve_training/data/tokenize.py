"""Documents into shards of tokens, several at a time, in the order in which they came.

A document is text and nothing else: where it spells a special token (`</s>` in a page about HTML), that is cut in two
before it is encoded, so that no document can end itself or open a role of a chat.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from polyserve.errors import InvalidRequest, TrainingError
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.fingerprint import tokenizer_sha256
from polyserve.tokenizer.load import load_tokenizer
from polyserve_training.config import TokenizeOptions
from polyserve_training.data.documents import Document, find_files, read_documents
from polyserve_training.data.shards import DatasetWriter, Index

_DOCUMENTS_AT_A_TIME = 256


def tokenize(paths: Sequence[Path], tokenizer_folder: Path, out: Path, options: TokenizeOptions) -> Index:
    """Write the documents of some files as a data set. Raises TrainingError; `out` then does not appear."""
    files = find_files(paths)
    tokenizer = load_tokenizer(tokenizer_folder)
    if tokenizer.eos_id is None:
        raise TrainingError(f"{tokenizer_folder}: its tokenizer has no end-of-text token to end documents with")
    documents = read_documents(files, language=options.language)
    writer = DatasetWriter(
        out,
        tokenizer_sha256=tokenizer_sha256(tokenizer_folder),
        vocab_size=tokenizer.vocab_size,
        shard_tokens=options.shard_tokens,
    )
    empty = True
    try:
        with writer, tqdm(unit="B", unit_scale=True, desc="tokenize") as bar:
            for document, ids in _encoded(documents, tokenizer, options.threads):
                num_bytes = len(document.text.encode())
                writer.append(document.language, [*ids, tokenizer.eos_id], num_bytes=num_bytes)
                bar.update(num_bytes)
                empty = False
            if empty:
                raise TrainingError(f"{', '.join(map(str, paths))}: there is no document with text")
            return writer.finish()
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written: {error.strerror}") from error


def _encoded(documents: Iterable[Document], tokenizer: Tokenizer, threads: int) -> Iterator[tuple[Document, list[int]]]:
    """Documents and their ids, in order; a few batches are encoded ahead."""

    def encode(batch: list[Document]) -> list[tuple[Document, list[int]]]:
        return [(document, encode_text(tokenizer, document.text)) for document in batch]

    source = iter(documents)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[list[tuple[Document, list[int]]]]] = deque()
        while batch := list(islice(source, _DOCUMENTS_AT_A_TIME)):
            ahead.append(pool.submit(encode, batch))
            if len(ahead) > 2 * threads:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that has no special tokens, whatever it spells."""
    try:
        ids = tokenizer.encode(text, add_special_tokens=False)
    except InvalidRequest as error:
        raise TrainingError(f"a document cannot be encoded: {error.message}") from error
    if not tokenizer.special_ids.intersection(ids):
        return ids
    plain: list[int] = []
    for token_id in ids:
        if token_id in tokenizer.special_ids:
            spelt = tokenizer.token_text(token_id)
            plain += tokenizer.encode(spelt[:1], add_special_tokens=False)
            plain += tokenizer.encode(spelt[1:], add_special_tokens=False)
        else:
            plain.append(token_id)
    return plain
