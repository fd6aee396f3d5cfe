"""The methods of `polyserve.v1.PolyServe`. Thin: what they check and run is the Frontend's, as for HTTP.

When the client cancels, goes away or its deadline passes, grpc cancels the method, which leaves the Frontend's stream,
which aborts the request in the engine.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeVar

import grpc

from polyserve.api.embeddings import embed
from polyserve.api.frontend import Admitted, Usage
from polyserve.api.grpc.convert import (
    choice_delta,
    conversation,
    embed_inputs,
    pooling,
    prompt_event,
    sampling_options,
    text_score,
    tool_use,
    usage_event,
)
from polyserve.api.grpc.stored import StoredCompletionCalls
from polyserve.api.metadata import check_metadata
from polyserve.api.recording import Recording
from polyserve.errors import InvalidRequest
from polyserve_proto.v1 import polyserve_pb2 as pb

Response = TypeVar("Response", pb.GenerateResponse, pb.ChatResponse)


class PolyServeService(StoredCompletionCalls):
    """One served model over gRPC."""

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        async with self._call(request, context, model=request.model):
            prompt = _prompt(request)
            options = sampling_options(request.params)
            admitted = await self._frontend.admit_prompts(
                f"gen-{uuid.uuid4().hex}",
                [prompt],
                options,
                tenant=self._tenant(context),
                timeout_s=context.time_remaining(),
            )
            async with aclosing(self._events(admitted, pb.GenerateResponse)) as events:
                async for event in events:
                    with self._within_write_timeout():
                        yield event

    async def Chat(
        self, request: pb.ChatRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ChatResponse, None]:
        async with self._call(request, context, model=request.model):
            self._frontend.check_store(request.store)
            check_metadata(request.metadata)
            options, asked = sampling_options(request.params), conversation(request)
            admitted = await self._frontend.admit_chat(
                f"chat-{uuid.uuid4().hex}",
                asked,
                options,
                use=tool_use(request),
                tenant=self._tenant(context),
                timeout_s=context.time_remaining(),
            )
            recording = Recording(asked.messages, request.metadata) if request.store else None
            async with aclosing(self._events(admitted, pb.ChatResponse, recording)) as events:
                async for event in events:
                    with self._within_write_timeout():
                        yield event

    async def Embed(self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext) -> pb.EmbedResponse:
        async with self._call(request, context, model=request.model, compresses=True):
            frontend = self._frontend
            how = pooling(request)
            admitted = await frontend.admit_inputs(
                f"embd-{uuid.uuid4().hex}",
                embed_inputs(request),
                tenant=self._tenant(context),
                timeout_s=context.time_remaining(),
            )
            dimensions = request.dimensions if request.HasField("dimensions") else None
            embeddings = await embed(frontend, admitted, pooling=how, dimensions=dimensions)
            return pb.EmbedResponse(
                embeddings=[pb.Embedding(values=vector.tolist()) for vector in embeddings.vectors],
                prompt_tokens=embeddings.prompt_tokens,
                model=frontend.model_name,
                system_fingerprint=frontend.llm.numerics_id,
            )

    async def Score(self, request: pb.ScoreRequest, context: grpc.aio.ServicerContext) -> pb.ScoreResponse:
        async with self._call(request, context, model=request.model, compresses=True):
            frontend = self._frontend
            admitted, texts = await frontend.admit_scores(
                f"score-{uuid.uuid4().hex}",
                [(one.context, one.continuation) for one in request.inputs],
                tenant=self._tenant(context),
                timeout_s=context.time_remaining(),
            )
            scores = await frontend.score(admitted, texts)
            return pb.ScoreResponse(
                scores=map(text_score, scores),
                prompt_tokens=sum(len(text.prompt_ids) for text in texts),
                model=frontend.model_name,
                system_fingerprint=frontend.llm.numerics_id,
            )

    async def Tokenize(self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext) -> pb.TokenizeResponse:
        async with self._call(request, context, model=request.model, compresses=True):
            frontend = self._frontend
            adds = request.add_special_tokens if request.HasField("add_special_tokens") else None
            kind = request.WhichOneof("input")
            if kind is None:
                raise InvalidRequest("one of text and conversation is required", param="text")
            if kind == "text":
                prompt = await frontend.read_prompt(request.text, add_special_tokens=adds is not False)
            else:
                asked = conversation(request.conversation)
                prompt = await frontend.read_conversation(asked, add_special_tokens=adds is True)
            data = await asyncio.to_thread(self._token_bytes, prompt.token_ids)
            max_model_len = frontend.llm.max_model_len
            return pb.TokenizeResponse(token_ids=prompt.token_ids, token_bytes=data, max_model_len=max_model_len)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DetokenizeResponse:
        async with self._call(request, context, model=request.model, compresses=True):
            skips = request.skip_special_tokens
            text = await self._frontend.decode(request.token_ids, field="token_ids", skip_special_tokens=skips)
            return pb.DetokenizeResponse(text=text)

    async def GetModel(self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext) -> pb.GetModelResponse:
        async with self._call(request, context, model=request.model):
            llm = self._frontend.llm
            return pb.GetModelResponse(
                model=self._frontend.model_name,
                max_model_len=llm.max_model_len,
                vocab_size=llm.vocab_size,
                system_fingerprint=llm.numerics_id,
                bos_token_id=llm.bos_id,
                eos_token_ids=llm.eos_ids,
            )

    async def _events(
        self, request: Admitted, event: type[Response], recording: Recording | None = None
    ) -> AsyncGenerator[Response, None]:
        """One Prompt, the deltas of all choices, one Usage."""
        llm, request_id = self._frontend.llm, request.request_id
        usage = Usage.of(request)
        opened = False
        async with aclosing(self._frontend.run(request)) as deltas:
            async for prompt_index, delta in deltas:
                usage.count(prompt_index, delta)
                if recording is not None:
                    recording.delta(delta)
                if not opened:
                    opened = True
                    prompt = await asyncio.to_thread(prompt_event, request, delta, llm.tokenizer)
                    prompt.model, prompt.system_fingerprint = self._frontend.model_name, llm.numerics_id
                    yield event(request_id=request_id, prompt=prompt)
                yield event(request_id=request_id, delta=choice_delta(delta))
        if recording is not None:
            await recording.keep(self._frontend, request, usage)
        yield event(request_id=request_id, usage=usage_event(usage))

    @contextmanager
    def _within_write_timeout(self) -> Iterator[None]:
        """Cancel the call if the client does not read what is yielded inside."""
        call = asyncio.current_task()
        assert call is not None
        timer = asyncio.get_running_loop().call_later(self._frontend.limits.write_timeout_s, call.cancel)
        try:
            yield
        finally:
            timer.cancel()

    def _token_bytes(self, token_ids: list[int]) -> list[bytes]:
        return [self._frontend.llm.tokenizer.token_bytes(token_id) for token_id in token_ids]


def _prompt(request: pb.GenerateRequest) -> str | list[int]:
    match request.WhichOneof("prompt"):
        case "text":
            return request.text
        case "token_ids":
            return list(request.token_ids.ids)
        case _:
            raise InvalidRequest("one of text and token_ids is required", param="prompt")
