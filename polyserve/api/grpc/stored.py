"""The RPCs for completions that were created with `store`."""

from collections.abc import Sequence

import grpc

from polyserve.api.conversation import Message, ToolCall
from polyserve.api.grpc.calls import Calls
from polyserve.api.grpc.convert import FINISH_REASONS, usage_event
from polyserve.api.metadata import check_metadata
from polyserve.api.store import Filters, Order, Page, StoredChoice, StoredCompletion, page_of_messages
from polyserve.errors import InvalidRequest
from polyserve_proto.v1 import polyserve_pb2 as pb

ORDERS: dict[int, Order] = {pb.Page.ORDER_UNSPECIFIED: "asc", pb.Page.ORDER_ASC: "asc", pb.Page.ORDER_DESC: "desc"}


class StoredCompletionCalls(Calls):
    """Retrieve, list, update, delete, messages."""

    async def GetStoredCompletion(
        self, request: pb.GetStoredCompletionRequest, context: grpc.aio.ServicerContext
    ) -> pb.StoredCompletion:
        async with self._call(request, context, compresses=True):
            return _completion(await self._frontend.completions.get(self._tenant(context), request.id))

    async def ListStoredCompletions(
        self, request: pb.ListStoredCompletionsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListStoredCompletionsResponse:
        async with self._call(request, context, compresses=True):
            filters = Filters(model=request.model or None, metadata=dict(request.metadata))
            found, has_more = await self._frontend.completions.list(self._tenant(context), _page(request.page), filters)
            return pb.ListStoredCompletionsResponse(completions=map(_completion, found), has_more=has_more)

    async def UpdateStoredCompletion(
        self, request: pb.UpdateStoredCompletionRequest, context: grpc.aio.ServicerContext
    ) -> pb.StoredCompletion:
        async with self._call(request, context, compresses=True):
            check_metadata(request.metadata)
            changed = await self._frontend.completions.update(self._tenant(context), request.id, dict(request.metadata))
            return _completion(changed)

    async def DeleteStoredCompletion(
        self, request: pb.DeleteStoredCompletionRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteStoredCompletionResponse:
        async with self._call(request, context):
            await self._frontend.completions.delete(self._tenant(context), request.id)
            return pb.DeleteStoredCompletionResponse()

    async def ListStoredMessages(
        self, request: pb.ListStoredMessagesRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListStoredMessagesResponse:
        async with self._call(request, context, compresses=True):
            completion = await self._frontend.completions.get(self._tenant(context), request.id)
            found, has_more = page_of_messages(completion, _page(request.page))
            messages = [pb.StoredMessage(id=name, message=_message(message)) for name, message in found]
            return pb.ListStoredMessagesResponse(messages=messages, has_more=has_more)


def _page(page: pb.Page) -> Page:
    if page.order not in ORDERS:
        raise InvalidRequest(f"order must be 'asc' or 'desc', got {page.order}", param="order")
    limit = {"limit": page.limit} if page.HasField("limit") else {}
    return Page(after=page.after or None, order=ORDERS[page.order], **limit)


def _completion(completion: StoredCompletion) -> pb.StoredCompletion:
    return pb.StoredCompletion(
        id=completion.id,
        created=completion.created,
        model=completion.model,
        system_fingerprint=completion.system_fingerprint,
        choices=map(_choice, completion.choices),
        usage=usage_event(completion),
        metadata=completion.metadata or {},
    )


def _choice(choice: StoredChoice) -> pb.StoredChoice:
    stop = choice.stop_reason
    return pb.StoredChoice(
        content=choice.content,
        tool_calls=_calls(choice.tool_calls),
        finish_reason=FINISH_REASONS[choice.finish_reason],
        stop_token_id=stop if isinstance(stop, int) else None,
        stop_string=stop if isinstance(stop, str) else None,
    )


def _message(message: Message) -> pb.ChatMessage:
    return pb.ChatMessage(
        role=f"ROLE_{message.role.upper()}",
        content=message.content,
        name=message.name,
        tool_calls=_calls(message.tool_calls),
        tool_call_id=message.tool_call_id,
    )


def _calls(calls: Sequence[ToolCall]) -> list[pb.ToolCall]:
    return [pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in calls]
