"""The methods of `polyserve.v1.PolyServe`. Thin: what they check and run is the Frontend's, as for HTTP.

When the client cancels, goes away or its deadline passes, grpc cancels the method, which leaves the Frontend's stream,
which aborts the request in the engine.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TypeVar

import grpc

from polyserve.api.frontend import Admitted, Frontend, Usage
from polyserve.api.grpc.authentication import authorization_of, metadata_value
from polyserve.api.grpc.convert import (
    choice_delta,
    conversation,
    prompt_event,
    refuse_unknown,
    sampling_options,
    tool_use,
    usage_event,
)
from polyserve.api.keys import KeyRing
from polyserve.api.request_id import HEADER, request_id_of
from polyserve.errors import InternalError, InvalidRequest, PolyServeError, status_of
from polyserve.log import get_logger, name_request
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeServicer

log = get_logger(__name__)

Response = TypeVar("Response", pb.GenerateResponse, pb.ChatResponse)


class PolyServeService(PolyServeServicer):
    """One served model over gRPC."""

    def __init__(self, frontend: Frontend, keys: KeyRing) -> None:
        self._frontend = frontend
        self._keys = keys

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        async with errors_as_status(context):
            refuse_unknown(request)
            self._frontend.check_model(request.model or None)
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
        async with errors_as_status(context):
            refuse_unknown(request)
            self._frontend.check_model(request.model or None)
            options = sampling_options(request.params)
            admitted = await self._frontend.admit_chat(
                f"chat-{uuid.uuid4().hex}",
                conversation(request),
                options,
                use=tool_use(request),
                tenant=self._tenant(context),
                timeout_s=context.time_remaining(),
            )
            async with aclosing(self._events(admitted, pb.ChatResponse)) as events:
                async for event in events:
                    with self._within_write_timeout():
                        yield event

    async def Tokenize(self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext) -> pb.TokenizeResponse:
        async with errors_as_status(context):
            refuse_unknown(request)
            frontend = self._frontend
            frontend.check_model(request.model or None)
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
        async with errors_as_status(context):
            refuse_unknown(request)
            self._frontend.check_model(request.model or None)
            skips = request.skip_special_tokens
            text = await self._frontend.decode(request.token_ids, field="token_ids", skip_special_tokens=skips)
            return pb.DetokenizeResponse(text=text)

    async def GetModel(self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext) -> pb.GetModelResponse:
        async with errors_as_status(context):
            refuse_unknown(request)
            self._frontend.check_model(request.model or None)
            llm = self._frontend.llm
            return pb.GetModelResponse(
                model=self._frontend.model_name,
                max_model_len=llm.max_model_len,
                vocab_size=llm.vocab_size,
                system_fingerprint=llm.numerics_id,
                bos_token_id=llm.bos_id,
                eos_token_ids=llm.eos_ids,
            )

    def _tenant(self, context: grpc.aio.ServicerContext) -> str | None:
        """Whose call it is. From here on it is a part of its caller's trace."""
        metadata = context.invocation_metadata()
        if self._frontend.tracing is not None:
            self._frontend.tracing.continue_from({key: value for key, value in metadata if isinstance(value, str)})
        return self._keys.authenticate(authorization_of(metadata))

    async def _events(self, request: Admitted, event: type[Response]) -> AsyncGenerator[Response, None]:
        """One Prompt, the deltas of all choices, one Usage."""
        llm, request_id = self._frontend.llm, request.request_id
        usage = Usage.of(request)
        opened = False
        async with aclosing(self._frontend.run(request)) as deltas:
            async for prompt_index, delta in deltas:
                usage.count(prompt_index, delta)
                if not opened:
                    opened = True
                    prompt = await asyncio.to_thread(prompt_event, request, delta, llm.tokenizer)
                    prompt.model, prompt.system_fingerprint = self._frontend.model_name, llm.numerics_id
                    yield event(request_id=request_id, prompt=prompt)
                yield event(request_id=request_id, delta=choice_delta(delta))
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


@asynccontextmanager
async def errors_as_status(context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    """End the call with the status of the error, and with HTTP's message. The call carries its id back."""
    request_id = request_id_of(metadata_value(context.invocation_metadata(), HEADER))
    context.set_trailing_metadata(((HEADER, request_id),))
    name_request(request_id)
    try:
        yield
    except PolyServeError as error:
        trailer = () if error.retry_after_s is None else (("retry-after", str(error.retry_after_s)),)
        await context.abort(grpc.StatusCode[status_of(error).grpc], error.message, trailer)
    except Exception:
        log.exception("a call met a fault of the server")
        fault = InternalError("the server met an internal error")
        await context.abort(grpc.StatusCode[status_of(fault).grpc], fault.message)


def _prompt(request: pb.GenerateRequest) -> str | list[int]:
    match request.WhichOneof("prompt"):
        case "text":
            return request.text
        case "token_ids":
            return list(request.token_ids.ids)
        case _:
            raise InvalidRequest("one of text and token_ids is required", param="prompt")
