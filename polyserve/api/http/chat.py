"""POST /v1/chat/completions: answer a conversation.

A stream opens each choice with its role, sends text as it comes, and ends the choice with its finish reason in a chunk
of its own; the chunks of several choices come in any order. `echo` begins the answer with the last message, if that is
the assistant's. A token that ends a choice is counted, but is no part of its text or of its log-probabilities.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from fastapi import APIRouter, Request, Response

from polyserve.api.conversation import Message, joined_calls
from polyserve.api.frontend import Admitted, Frontend, Usage
from polyserve.api.http.answers import ChatCompletion, answers
from polyserve.api.http.authentication import tenant_of
from polyserve.api.http.body import JsonRoute, json_response
from polyserve.api.http.deadline import timeout_of
from polyserve.api.http.envelope import ending, envelope, usage_object
from polyserve.api.http.events import Chunks, EventStream, while_connected
from polyserve.api.http.logprobs import chat_logprobs, prompt_logprobs
from polyserve.api.http.schemas import ChatBody, UsageChunks
from polyserve.api.http.tools import call_delta, call_objects
from polyserve.api.metadata import check_metadata
from polyserve.api.recording import Recording
from polyserve.output import LogprobEntry
from polyserve.service.async_llm import ChoiceDelta
from polyserve.tools.parser import CallDelta


def chat_router(frontend: Frontend) -> APIRouter:
    """The route of this file, for one served model."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions", responses=answers(ChatCompletion, streams=True))
    async def create_chat_completion(body: ChatBody, request: Request) -> Response:
        frontend.check_model(body.model)
        shown = body.usage_chunks()
        frontend.check_store(bool(body.store))
        check_metadata(body.metadata)
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        conversation = body.conversation(body.messages)
        admitted = await frontend.admit_chat(
            request_id,
            conversation,
            body.options(),
            use=body.tool_use(),
            renamed=body.renamed(),
            tenant=tenant_of(request),
            timeout_s=timeout_of(request),
        )
        answer = _Answer(frontend, body, admitted, conversation.messages)
        if body.stream:
            return EventStream(answer.events(shown))
        return json_response(await while_connected(request.receive, answer.whole()))

    return router


@dataclass(slots=True)
class _Choice:
    """One choice so far."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    entries: list[LogprobEntry] = field(default_factory=list)
    calls: list[CallDelta] = field(default_factory=list)
    end: ChoiceDelta | None = None


class _Answer:
    """One request's answer, whole or in chunks."""

    def __init__(self, frontend: Frontend, body: ChatBody, request: Admitted, messages: Sequence[Message]) -> None:
        self._frontend = frontend
        self._body = body
        self._request = request
        self._usage = Usage.of(request)
        last = body.messages[-1]
        self._opening = last.content or "" if body.echo and last.role == "assistant" else ""
        self._recording: Recording | None = None
        if body.store:
            self._recording = Recording(messages, body.metadata, None if body.service_tier is None else "default")
            for choice in range(request.num_choices):
                self._recording.add(choice, self._opening)
        hides = request.params.skip_special_tokens
        self._hidden = frontend.llm.tokenizer.special_ids if hides else frozenset()

    async def whole(self) -> dict[str, object]:
        """The response object."""
        response = envelope(self._frontend, self._request, kind="chat.completion")
        of_prompt: dict[str, object] | None = None
        choices = [_Choice([self._opening]) for _ in range(self._request.num_choices)]
        async with aclosing(self._frontend.run(self._request)) as deltas:
            async for _, delta in deltas:
                self._count(delta)
                if of_prompt is None:
                    of_prompt = await self._of_prompt(delta)
                choice = choices[delta.choice]
                choice.texts.append(delta.text)
                choice.token_ids += delta.token_ids
                choice.entries += _written(delta)
                choice.calls += delta.calls
                choice.end = delta
        await self._keep()
        response["choices"] = [self._choice_object(index, choice) for index, choice in enumerate(choices)]
        if self._body.metadata is not None:
            response["metadata"] = self._body.metadata
        return {**response, **self._body.echoed(), "usage": usage_object(self._usage), **(of_prompt or {})}

    def _choice_object(self, index: int, choice: _Choice) -> dict[str, object]:
        assert choice.end is not None
        text = "".join(choice.texts)
        message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if choice.calls:
            message |= {"content": text or None, "tool_calls": call_objects(joined_calls(choice.calls))}
        value: dict[str, object] = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.entries),
            **ending(choice.end),
        }
        if self._body.return_token_ids:
            value["token_ids"] = choice.token_ids
        return value

    async def events(self, shown: UsageChunks) -> AsyncGenerator[bytes, None]:
        """The stream's events. The first one tells what was asked to know of the prompt."""
        common = envelope(self._frontend, self._request, kind="chat.completion.chunk")
        chunks = Chunks({**common, **self._body.echoed()}, self._usage, shown)
        opened: set[int] = set()
        async with aclosing(self._frontend.run(self._request)) as deltas:
            async for _, delta in deltas:
                self._count(delta)
                if delta.choice not in opened:
                    of_prompt = None if opened else await self._of_prompt(delta)
                    opened.add(delta.choice)
                    yield chunks.choice(self._role_chunk(delta.choice), beside=of_prompt)
                entries = _written(delta)
                if delta.text or entries or self._body.return_token_ids:
                    yield chunks.choice(self._text_chunk(delta, entries))
                if delta.calls:
                    yield chunks.choice(_calls_chunk(delta))
                if delta.finish_reason is not None:
                    yield chunks.choice(_end_chunk(delta))
        await self._keep()
        yield chunks.end()

    async def _of_prompt(self, first: ChoiceDelta) -> dict[str, object]:
        """What was asked to know of the prompt; off the event loop, since prompts can be long."""
        value: dict[str, object] = {}
        if first.prompt_logprobs is not None and self._body.prompt_logprobs is not None:
            write = partial(prompt_logprobs, first.prompt_logprobs, num_top=self._body.prompt_logprobs)
            value["prompt_logprobs"] = await asyncio.to_thread(write)
        if self._body.return_token_ids:
            value["prompt_token_ids"] = self._request.prompts[0].token_ids
        return value

    def _count(self, delta: ChoiceDelta) -> None:
        self._usage.count(0, delta)
        if self._recording is not None:
            self._recording.delta(delta)

    async def _keep(self) -> None:
        if self._recording is not None:
            await self._recording.keep(self._frontend, self._request, self._usage)

    def _logprobs(self, entries: list[LogprobEntry]) -> dict[str, object] | None:
        return chat_logprobs(entries, hidden=self._hidden) if self._body.logprobs else None

    def _role_chunk(self, index: int) -> dict[str, object]:
        delta = {"role": "assistant", "content": self._opening, "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _text_chunk(self, delta: ChoiceDelta, entries: list[LogprobEntry]) -> dict[str, object]:
        chunk: dict[str, object] = {
            "index": delta.choice,
            "delta": {"content": delta.text},
            "logprobs": self._logprobs(entries),
            "finish_reason": None,
        }
        if self._body.return_token_ids:
            chunk["token_ids"] = delta.token_ids
        return chunk


def _written(delta: ChoiceDelta) -> list[LogprobEntry]:
    """Log-probabilities of the tokens that add to the text: all but the one that ended the choice by itself."""
    entries = delta.logprobs or []
    ended_by_token = delta.finish_reason in ("stop", "tool_calls") and not isinstance(delta.stop_reason, str)
    return entries[:-1] if ended_by_token else entries


def _calls_chunk(delta: ChoiceDelta) -> dict[str, object]:
    calls = [call_delta(call) for call in delta.calls]
    return {"index": delta.choice, "delta": {"tool_calls": calls}, "logprobs": None, "finish_reason": None}


def _end_chunk(delta: ChoiceDelta) -> dict[str, object]:
    return {
        "index": delta.choice,
        "delta": {},
        "logprobs": None,
        **ending(delta),
    }
