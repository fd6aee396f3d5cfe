"""Conversations as the server will see them, and rows of them: what supervised fine-tuning learns from.

sample   an answer and all that stands before it. The prompt is what the server makes of the messages before: rendered
         by the chat template with the generation prompt, and encoded as one text. Then the answer's ids, up to and with
         the token that ends it: the template's own where it writes one that stops the server, else end-of-text.
         A conversation of many turns gives many samples, since a later prompt is not an earlier one with its answer
         put behind it: templates write other things after an answer than before it
loss     on the answer alone, its end included, without which a served model would never stop
row      whole samples side by side, up to `context` tokens, each by itself as documents are. Samples are put in an
         order by the seed, and each goes into the first of the rows at hand that has room
Samples that are longer than a row are left out, and counted in the log.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyserve.errors import InvalidRequest, TrainingError
from polyserve.log import get_logger
from polyserve.tokenizer.base import Tokenizer
from polyserve_training.data.conversations import Conversation, read_conversations
from polyserve_training.data.documents import find_files
from polyserve_training.data.mixture import Permutation
from polyserve_training.data.packing import IGNORED, Packed, pack
from polyserve_training.data.tokenize import encode_text

_log = get_logger("polyserve.training")
_OPEN_ROWS = 64  # rows at hand: more fill better, and take longer


@dataclass(frozen=True, slots=True)
class Answer:
    """A sample."""

    prompt_ids: list[int]
    answer_ids: list[int]  # the last one ends the answer
    num_bytes: int  # of the answer

    @property
    def num_inputs(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids) - 1

    def packed(self) -> Packed:
        ids = np.array([*self.prompt_ids, *self.answer_ids], dtype=np.int64)
        targets = ids[1:].copy()
        targets[: len(self.prompt_ids) - 1] = IGNORED
        return Packed(ids[:-1], np.arange(len(targets)), np.array([0, len(targets)], dtype=np.int32), targets)


@dataclass(frozen=True, slots=True)
class ChatRows:
    """The rows of one language of a source."""

    rows: list[list[Answer]]

    @property
    def num_tokens(self) -> int:
        return sum(sample.num_inputs for row in self.rows for sample in row)

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def tokens_per_byte(self) -> float:
        samples = [sample for row in self.rows for sample in row]
        return sum(len(x.answer_ids) for x in samples) / max(sum(x.num_bytes for x in samples), 1)

    @property
    def stop_ids(self) -> set[int]:
        """The tokens that end answers."""
        return {sample.answer_ids[-1] for row in self.rows for sample in row}

    def row(self, number: int, epoch: int = 0) -> Packed:  # noqa: ARG002  (conversations are never cut)
        return pack([sample.packed() for sample in self.rows[number]])


def open_conversations(path: Path, tokenizer: Tokenizer, *, context: int, seed: int) -> tuple[dict[str, ChatRows], str]:
    """Rows by language, and a fingerprint of the files. Raises TrainingError."""
    samples: dict[str, list[Answer]] = {}
    num_long = 0
    for conversation in read_conversations(path):
        for sample in answers_of(conversation, tokenizer):
            if sample.num_inputs > context:
                num_long += 1
            else:
                samples.setdefault(conversation.language, []).append(sample)
    if num_long:
        _log.warning(
            "%s: %d answers with their prompts are longer than a row of %d, and are left out", path, num_long, context
        )
    if not samples:
        raise TrainingError(f"{path}: no answer with its prompt fits a row of {context} tokens")
    whole = hashlib.sha256()
    for file in find_files([path]):
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    rows = {
        language: ChatRows(_fill_rows(found, context, f"{seed}/{language}"))
        for language, found in sorted(samples.items())
    }
    return rows, whole.hexdigest()


def answers_of(conversation: Conversation, tokenizer: Tokenizer) -> list[Answer]:
    """A sample for each answer of a conversation."""
    samples = []
    for number, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        before, content = conversation.messages[:number], str(message["content"])
        try:
            prompt = tokenizer.render_chat(before)
            whole = tokenizer.render_chat([*before, message], add_generation_prompt=False)
            prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        except InvalidRequest as error:
            raise TrainingError(f"{conversation.where}: {error.message}") from error
        if not whole.startswith(prompt):
            raise TrainingError(
                f"{conversation.where}: the chat template does not put an answer behind the prompt for it, so that "
                "what is trained would not be what is served"
            )
        if not prompt_ids:
            raise TrainingError(f"{conversation.where}: the prompt of answer {number} is empty")
        answer_ids = _answer_ids(whole[len(prompt) :], content, tokenizer, conversation.where)
        samples.append(Answer(prompt_ids, answer_ids, len(content.encode())))
    return samples


def _answer_ids(written: str, content: str, tokenizer: Tokenizer, where: str) -> list[int]:
    """What has to be generated.  written: what the template writes for the answer, its end included."""
    text = content if written.startswith(content) else written.strip()
    ids = encode_text(tokenizer, text)
    after = tokenizer.encode(written[len(content) :], add_special_tokens=False) if written.startswith(content) else []
    stop = next((token_id for token_id in after if token_id in tokenizer.eos_ids), tokenizer.eos_id)
    if stop is None:
        raise TrainingError(f"{where}: nothing ends an answer: the tokenizer has no end-of-text token")
    return [*ids, stop]


def _fill_rows(samples: Sequence[Answer], context: int, key: str) -> list[list[Answer]]:
    order = Permutation(len(samples), key)
    rows: list[list[Answer]] = []
    at_hand: list[tuple[int, int]] = []  # (row, room)
    for place in range(len(samples)):
        sample = samples[order.of(place)]
        for number, (row, room) in enumerate(at_hand):
            if sample.num_inputs <= room:
                rows[row].append(sample)
                at_hand[number] = (row, room - sample.num_inputs)
                break
        else:
            rows.append([sample])
            at_hand = [*at_hand, (len(rows) - 1, context - sample.num_inputs)][-_OPEN_ROWS:]
    return rows
