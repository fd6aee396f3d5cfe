"""Completions that were created with `store`: GET, POST and DELETE below /v1/chat/completions."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from polyserve.api.conversation import Message
from polyserve.api.frontend import Frontend, shortened
from polyserve.api.http.answers import (
    ChatCompletion,
    ChatCompletionList,
    DeletedCompletion,
    StoredMessageList,
    answers,
)
from polyserve.api.http.authentication import tenant_of
from polyserve.api.http.body import JsonRoute, json_response
from polyserve.api.http.envelope import usage_object
from polyserve.api.http.fields import ECHOED, Body
from polyserve.api.http.tools import call_objects
from polyserve.api.metadata import check_metadata
from polyserve.api.store import MAX_PAGE, Filters, Page, StoredChoice, StoredCompletion, page_of_messages
from polyserve.errors import InvalidRequest

PATH = "/v1/chat/completions"


class UpdateBody(Body):
    """POST /v1/chat/completions/{completion_id}."""

    metadata: Annotated[dict[str, str] | None, ECHOED]
    """Takes the place of the metadata that the completion has; null: none."""


def stored_router(frontend: Frontend) -> APIRouter:
    """The routes of this file, for one served model."""
    router = APIRouter(route_class=JsonRoute)
    one = PATH + "/{completion_id}"

    @router.get(PATH, responses=answers(ChatCompletionList), openapi_extra=_parameters("model", "metadata"))
    async def list_chat_completions(request: Request) -> Response:
        page, filters = _asked(request, "model", "metadata")
        found, has_more = await frontend.completions.list(tenant_of(request), page, filters)
        return json_response(_list_object([completion_object(completion) for completion in found], has_more))

    @router.get(one, responses=answers(ChatCompletion))
    async def retrieve_chat_completion(completion_id: str, request: Request) -> Response:
        return json_response(completion_object(await frontend.completions.get(tenant_of(request), completion_id)))

    @router.post(one, responses=answers(ChatCompletion))
    async def update_chat_completion(completion_id: str, body: UpdateBody, request: Request) -> Response:
        check_metadata(body.metadata)
        changed = await frontend.completions.update(tenant_of(request), completion_id, body.metadata)
        return json_response(completion_object(changed))

    @router.delete(one, responses=answers(DeletedCompletion))
    async def delete_chat_completion(completion_id: str, request: Request) -> Response:
        await frontend.completions.delete(tenant_of(request), completion_id)
        return json_response({"object": "chat.completion.deleted", "id": completion_id, "deleted": True})

    @router.get(one + "/messages", responses=answers(StoredMessageList), openapi_extra=_parameters())
    async def list_messages(completion_id: str, request: Request) -> Response:
        page, _ = _asked(request)
        completion = await frontend.completions.get(tenant_of(request), completion_id)
        found, has_more = page_of_messages(completion, page)
        return json_response(_list_object([_message_object(*named) for named in found], has_more))

    return router


def completion_object(completion: StoredCompletion) -> dict[str, object]:
    """What was answered, in the shape in which it was."""
    value: dict[str, object] = {
        "id": completion.id,
        "object": "chat.completion",
        "created": completion.created,
        "model": completion.model,
        "system_fingerprint": completion.system_fingerprint,
        "choices": [_choice_object(index, choice) for index, choice in enumerate(completion.choices)],
        "usage": usage_object(completion),
        "metadata": completion.metadata or {},
    }
    if completion.service_tier is not None:
        value["service_tier"] = completion.service_tier
    return value


def _choice_object(index: int, choice: StoredChoice) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": choice.content, "refusal": None}
    if choice.tool_calls:
        message |= {"content": choice.content or None, "tool_calls": call_objects(choice.tool_calls)}
    value = {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}
    return value if choice.stop_reason is None else {**value, "stop_reason": choice.stop_reason}


def _message_object(message_id: str, message: Message) -> dict[str, object]:
    value: dict[str, object] = {"id": message_id, "role": message.role, "content": message.content, "refusal": None}
    if message.name is not None:
        value["name"] = message.name
    if message.tool_call_id is not None:
        value["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        value["tool_calls"] = call_objects(message.tool_calls)
    return value


def _list_object(data: list[dict[str, object]], has_more: bool) -> dict[str, object]:
    ids = [item["id"] for item in data]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def _asked(request: Request, *filters: str) -> tuple[Page, Filters]:
    """The query's parameters, strictly: another one, or one that is given twice, is refused by name."""
    given: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if "metadata" in filters and name.startswith("metadata[") and name.endswith("]"):
            metadata[name[len("metadata[") : -1]] = value
        elif name in ("after", "limit", "order", *filters) and name != "metadata" and name not in given:
            given[name] = value
        else:
            message = f"{shortened(name)} is no parameter of this request, or was given twice"
            raise InvalidRequest(message, param=name, code="unknown_field")
    model = given.pop("model", None)
    if "limit" in given:
        given["limit"] = _whole(given["limit"])
    return Page(**given), Filters(model=model, metadata=metadata)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise InvalidRequest(f"limit must be a whole number, got {shortened(text)}", param="limit")
    return int(text)


def _parameters(*filters: str) -> dict[str, Any]:
    """What `_asked` reads, for the description of the API."""
    string = {"type": "string"}
    known: dict[str, tuple[dict[str, Any], str]] = {
        "after": (string, "The id behind which the page begins."),
        "limit": ({"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 20}, "Most items of the page."),
        "order": ({"type": "string", "enum": ["asc", "desc"]}, "Oldest first, the default, or newest first."),
        "model": (string, "Only completions of this model."),
        "metadata": (
            {"type": "object"},  # of strings, as all that a query holds
            "Only completions that have all of this: `metadata[key]=value`.",
        ),
    }
    shown = ("after", "limit", "order", *filters)
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": known[name][0], "description": known[name][1]}
        | ({"style": "deepObject", "explode": True} if name == "metadata" else {})
        for name in shown
    ]
    return {"parameters": parameters}
