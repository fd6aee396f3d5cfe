"""POST /v1/completions: continue one prompt or several, each with `n` choices.

Choice c of prompt p has the index p * n + c. With `echo` a choice's text begins with its prompt: as it was given, or,
for token ids, their text with all special tokens. With `logprobs` as well, its arrays begin with the prompt's tokens,
the first one's values null: that is how lm-evaluation-harness scores texts (`max_tokens` 0 or 1).
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from polyserve.api.frontend import Admitted, Frontend, Usage
from polyserve.api.http.answers import Completion, answers
from polyserve.api.http.authentication import tenant_of
from polyserve.api.http.body import JsonRoute, json_response
from polyserve.api.http.deadline import timeout_of
from polyserve.api.http.envelope import ending, envelope, usage_object
from polyserve.api.http.events import Chunks, EventStream, while_connected
from polyserve.api.http.logprobs import LegacyLogprobs, LegacyWriter, num_characters, prompt_logprobs
from polyserve.api.http.schemas import CompletionBody, UsageChunks
from polyserve.output import LogprobEntry
from polyserve.service.async_llm import ChoiceDelta

KIND = "text_completion"


def completions_router(frontend: Frontend) -> APIRouter:
    """The route of this file, for one served model."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions", responses=answers(Completion, streams=True))
    async def create_completion(body: CompletionBody, request: Request) -> Response:
        frontend.check_model(body.model)
        shown = body.usage_chunks()
        request_id = f"cmpl-{uuid.uuid4().hex}"
        admitted = await frontend.admit_prompts(
            request_id,
            body.prompt,
            body.options(),
            echo=bool(body.echo),
            renamed=body.renamed(),
            tenant=tenant_of(request),
            timeout_s=timeout_of(request),
        )
        answer = _Answer(frontend, body, admitted)
        if body.stream:
            return EventStream(answer.events(shown))
        return json_response(await while_connected(request.receive, answer.whole()))

    return router


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What the choices of one prompt begin with. They share it."""

    text: str = ""
    logprobs: LegacyLogprobs | None = None
    ranked: list[dict[str, object] | None] | None = None  # the prompt's log-probabilities in vLLM's shape


@dataclass(slots=True)
class _Piece:
    """A part of one choice: one delta, or all so far."""

    text: str
    token_ids: list[int]
    logprobs: LegacyLogprobs | None

    def extend(self, more: "_Piece") -> None:
        self.text += more.text
        self.token_ids += more.token_ids
        if self.logprobs is not None and more.logprobs is not None:
            self.logprobs.extend(more.logprobs)


class _Answer:
    """One request's answer, whole or in chunks."""

    def __init__(self, frontend: Frontend, body: CompletionBody, request: Admitted) -> None:
        self._frontend = frontend
        self._body = body
        self._request = request
        self._usage = Usage.of(request)
        self._beginnings: dict[int, _Beginning] = {}  # by prompt
        self._writers: dict[int, LegacyWriter] = {}  # by choice

    async def whole(self) -> dict[str, object]:
        """The response object."""
        common = envelope(self._frontend, self._request, kind=KIND)
        pieces: dict[int, _Piece] = {}
        ends: dict[int, ChoiceDelta] = {}
        async with aclosing(self._frontend.run(self._request)) as deltas:
            async for prompt_index, delta in deltas:
                index, piece, first = await self._read(prompt_index, delta)
                if first:
                    pieces[index] = piece
                else:
                    pieces[index].extend(piece)
                if delta.finish_reason is not None:
                    ends[index] = delta
        choices = [self._choice(index, pieces[index], end, first=True) for index, end in sorted(ends.items())]
        return {**common, "choices": choices, "usage": usage_object(self._usage)}

    async def events(self, shown: UsageChunks) -> AsyncGenerator[bytes, None]:
        """The stream's events."""
        chunks = Chunks(envelope(self._frontend, self._request, kind=KIND), self._usage, shown)
        shows_ids = self._body.return_token_ids
        async with aclosing(self._frontend.run(self._request)) as deltas:
            async for prompt_index, delta in deltas:
                index, piece, first = await self._read(prompt_index, delta)
                if piece.text or first or delta.finish_reason or piece.logprobs or shows_ids:
                    yield chunks.choice(self._choice(index, piece, delta, first=first))
        yield chunks.end()

    async def _read(self, prompt_index: int, delta: ChoiceDelta) -> tuple[int, _Piece, bool]:
        """The choice's index, what is new in it, and whether that is its first piece."""
        self._usage.count(prompt_index, delta)
        index = prompt_index * self._request.params.n + delta.choice
        first = index not in self._writers
        if first:
            beginning = await self._beginning(prompt_index, delta)
            self._writers[index] = self._writer(start=len(beginning.text))
        new = None if self._body.logprobs is None else self._writers[index].write(delta.logprobs or ())
        piece = _Piece(delta.text, list(delta.token_ids), new)
        if first and self._body.echo:
            piece.text = beginning.text + piece.text
            piece.logprobs = _joined(beginning.logprobs, new)
        return index, piece, first

    def _writer(self, *, start: int) -> LegacyWriter:
        hidden = self._frontend.llm.tokenizer.special_ids if self._request.params.skip_special_tokens else frozenset()
        return LegacyWriter(num_top=self._body.logprobs or 0, hidden=hidden, start=start)

    async def _beginning(self, prompt_index: int, delta: ChoiceDelta) -> _Beginning:
        """Made at the prompt's first delta, which brings its log-probabilities; off the loop: prompts are long."""
        if prompt_index not in self._beginnings:
            if self._body.echo or delta.prompt_logprobs is not None:
                made = await asyncio.to_thread(self._make_beginning, prompt_index, delta.prompt_logprobs)
            else:
                made = _Beginning()
            self._beginnings[prompt_index] = made
        return self._beginnings[prompt_index]

    def _make_beginning(self, prompt_index: int, entries: list[LogprobEntry | None] | None) -> _Beginning:
        tokenizer, prompt = self._frontend.llm.tokenizer, self._request.prompts[prompt_index]
        num_ranked = self._body.prompt_logprobs
        ranked = None if num_ranked is None or entries is None else prompt_logprobs(entries, num_top=num_ranked)
        if not self._body.echo:
            return _Beginning(ranked=ranked)
        text = prompt.text
        if text is None:
            text = tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
        if self._body.logprobs is None or entries is None:
            return _Beginning(text, ranked=ranked)
        # what the tokenizer put before the text (a begin-of-sequence token, a space) lies before its first character
        num_written = num_characters(b"".join(map(tokenizer.token_bytes, prompt.token_ids)))
        writer = LegacyWriter(num_top=self._body.logprobs, start=len(text) - num_written)
        return _Beginning(text, writer.write_prompt(tokenizer, prompt.token_ids, entries), ranked)

    def _choice(self, index: int, piece: _Piece, delta: ChoiceDelta, *, first: bool) -> dict[str, object]:
        """One choice's object. `first`: its first one, which also tells what was asked to know of the prompt."""
        choice: dict[str, object] = {
            "index": index,
            "text": piece.text,
            "logprobs": piece.logprobs,
            **ending(delta),
        }
        prompt_index = index // self._request.params.n
        if self._body.return_token_ids:
            choice["token_ids"] = piece.token_ids
            if first:
                choice["prompt_token_ids"] = self._request.prompts[prompt_index].token_ids
        ranked = self._beginnings[prompt_index].ranked
        if first and ranked is not None:
            choice["prompt_logprobs"] = ranked
        return choice


def _joined(prompt: LegacyLogprobs | None, new: LegacyLogprobs | None) -> LegacyLogprobs | None:
    if prompt is None or new is None:
        return None
    whole = LegacyLogprobs([], [], [], [])
    whole.extend(prompt)
    whole.extend(new)
    return whole
