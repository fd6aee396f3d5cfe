"""The text side of one sequence: tokens in as the engine brings them; text, log-probability entries and the end out.

    token ids -> bytes -> stop strings -> UTF-8 -> text

Bytes are what a token surely adds; a character may be spread over several tokens, and a stop string may begin and end
inside one. So stop strings are looked for in the bytes. What could still become a stop string is held back, and so is
an unfinished character, until more tokens or the end decide; what was given out is never taken back. The deltas join to
the same text however the tokens were grouped into outputs.

An answer ends at the first byte that completes a stop string; if several end there, the longest counts. The text ends
before it (after it with `include_stop_str_in_output`), the token ids and log-probabilities after the token that
completed it. The text of the first `min_tokens` tokens is given out whole. The token of an end by token (end of
sequence, `stop_token_ids`) is reported without its text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from polyserve.request import FinishReason, SequenceOutput, TokenLogprob
from polyserve.sampling_params import SamplingParams
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.detokenizer import Detokenizer


class TopLogprob(NamedTuple):
    """One of the most likely tokens at a position. `bytes` is exact, `token` lossy where it is not whole characters."""

    token: str
    token_id: int
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class LogprobEntry:
    """The token that stands at a position, and the most likely ones there, best first."""

    token: str
    token_id: int
    bytes: bytes
    logprob: float
    top: list[TopLogprob]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one output adds to the answer. `text` may lag behind `token_ids` by what is held back."""

    text: str
    token_ids: list[int]
    logprobs: list[LogprobEntry] | None  # one for each of token_ids, if asked for
    finish_reason: FinishReason | None
    stop_reason: (
        int | str | None
    )  # the stop string or stop token that ended it, but for the model's own end of sequence
    stopped: bool  # a stop string ended it, which the engine does not know: its choice has to be aborted


@dataclass(slots=True)
class CompletionOutput:
    """One answer to a prompt."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None  # sum over token_ids, if log-probabilities were asked for
    logprobs: list[LogprobEntry] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its `n` answers."""

    request_id: str
    prompt: str | None  # None if it was given as token ids
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[LogprobEntry | None] | None  # entry 0 is None: nothing predicts the first token
    finished: bool
    num_cached_tokens: int


def mean_logprob(entries: Sequence[LogprobEntry]) -> float:
    """By which answers are compared of which the best are given; that of an empty one is the lowest there is."""
    return sum(entry.logprob for entry in entries) / len(entries) if entries else -math.inf


def logprob_entry(tokenizer: Tokenizer, position: TokenLogprob) -> LogprobEntry:
    """The engine's numbers for one position, with what its tokens look like."""
    top = []
    for token_id, logprob in zip(position.top_ids, position.top_logprobs, strict=True):
        token, data = _look(tokenizer, token_id)
        top.append(TopLogprob(token, token_id, data, logprob))
    token, data = _look(tokenizer, position.token_id)
    return LogprobEntry(token, position.token_id, data, position.logprob, top)


def _look(tokenizer: Tokenizer, token_id: int) -> tuple[str, bytes]:
    """Text and bytes of a token; of one beyond the tokenizer's vocabulary (a padding row of the embedding), nothing."""
    data = tokenizer.token_bytes(token_id) if token_id < tokenizer.vocab_size else b""
    return data.decode(errors="replace"), data


def prompt_logprob_entries(
    tokenizer: Tokenizer, positions: list[TokenLogprob | None] | None
) -> list[LogprobEntry | None] | None:
    """The same for a whole prompt, where it was asked for."""
    if positions is None:
        return None
    return [None if position is None else logprob_entry(tokenizer, position) for position in positions]


class StopMatcher:
    """Finds the first of several byte strings in a stream of bytes, and gives out what cannot be part of one any more.

    For each stop string it keeps where in the held bytes the longest suffix begins that is a prefix of it. These places
    only move forward, so the work is linear in the bytes of the stream for each stop string, whatever the strings are.
    """

    def __init__(self, stops: Sequence[bytes]) -> None:
        self._stops = stops
        self._held = b""
        self._begins = [0] * len(stops)  # offsets into _held; len(_held): no suffix of it begins this stop string

    def push(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Returns the bytes that are free to go, and the stop string that `data` completed, before which they end."""
        if not self._stops:
            return data, None
        buffer = self._held + data
        match = self._first_match(buffer)
        if match is not None:
            end, stop = match
            return buffer[: end - len(stop)], stop
        self._begins = [
            _prefix_begin(buffer, stop, begin) for stop, begin in zip(self._stops, self._begins, strict=True)
        ]
        keep = min(self._begins)
        self._held = buffer[keep:]
        self._begins = [begin - keep for begin in self._begins]
        return buffer[:keep], None

    def flush(self) -> bytes:
        """What is still held: no more bytes will come, so it is no stop string."""
        held, self._held, self._begins = self._held, b"", [0] * len(self._stops)
        return held

    def _first_match(self, buffer: bytes) -> tuple[int, bytes] | None:
        """End and value of the stop string that ends first; of several that end there, the longest."""
        matches = []
        for stop, begin in zip(self._stops, self._begins, strict=True):
            found = buffer.find(stop, begin)
            if found >= 0:
                matches.append((found + len(stop), stop))
        return min(matches, key=lambda match: (match[0], -len(match[1])), default=None)


def _prefix_begin(buffer: bytes, stop: bytes, begin: int) -> int:
    """Where the longest suffix of `buffer[begin:]` begins that is a prefix of `stop`; its end if there is none."""
    while (begin := buffer.find(stop[:1], begin)) >= 0:
        if stop.startswith(buffer[begin:]):
            return begin
        begin += 1
    return len(buffer)


class SequenceText:
    """One choice's text as it grows. `push` every output of the choice in order until it is `finished`."""

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, *, shown_ids: frozenset[int] = frozenset()
    ) -> None:
        """shown_ids: special tokens that are text, whatever `params` say of others."""
        self._tokenizer = tokenizer
        self._params = params
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens, shown_ids=shown_ids)
        self._matcher = StopMatcher([stop.encode() for stop in params.stop])
        self._num_tokens = 0
        self.finished = False

    def push(self, output: SequenceOutput) -> TextDelta:
        """What `output` adds. Token ids behind a stop string's end are dropped."""
        assert not self.finished, f"output for choice {output.choice} of {output.request_id} after its end"
        token_ids, finish_reason = output.token_ids, output.finish_reason
        stop_reason: int | str | None = output.stop_reason
        num_readable = len(token_ids) - 1 if finish_reason == "stop" else len(token_ids)
        pieces = []
        stop = None
        for index in range(num_readable):
            piece, stop = self._read(token_ids[index])
            pieces.append(piece)
            if stop is not None:
                token_ids = token_ids[: index + 1]
                finish_reason, stop_reason = "stop", stop.decode()
                break
        if stop is not None and self._params.include_stop_str_in_output:
            pieces.append(stop)
        self.finished = finish_reason is not None
        if self.finished and stop is None:
            pieces.append(self._matcher.flush())
        text = self._detokenizer.push_bytes(b"".join(pieces))
        if self.finished:
            text += self._detokenizer.flush()
        stopped = stop is not None and output.finish_reason is None
        return TextDelta(text, token_ids, self._entries(output, len(token_ids)), finish_reason, stop_reason, stopped)

    def _read(self, token_id: int) -> tuple[bytes, bytes | None]:
        """The bytes that the next token frees, and the stop string that it completes."""
        self._num_tokens += 1
        data = self._detokenizer.bytes_of((token_id,))
        if self._num_tokens <= self._params.min_tokens:
            return data, None
        return self._matcher.push(data)

    def _entries(self, output: SequenceOutput, num_tokens: int) -> list[LogprobEntry] | None:
        if output.logprobs is None:
            return None
        return [logprob_entry(self._tokenizer, position) for position in output.logprobs[:num_tokens]]
