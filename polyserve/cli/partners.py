"""Who answers in a chat: a model in an engine process of our own, or any server that speaks OpenAI's chat protocol.

A Partner gets the whole conversation each time (both kinds are stateless; the prefix cache makes the repetition cheap)
and yields its answer piece by piece. Closing the iterator early stops the answer where it is computed.
"""

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

import click
import httpx

from polyserve.errors import InvalidRequest
from polyserve.sampling_params import SamplingParams

if TYPE_CHECKING:
    from polyserve.service.async_llm import AsyncLLM

Message = dict[str, object]  # {"role": "system" | "user" | "assistant", "content": str}
CONNECT_TIMEOUT_SECONDS = 10.0


class Partner(Protocol):
    def answer(self, messages: list[Message]) -> AsyncGenerator[str, None]:
        """The answer to a conversation, in pieces. Raises InvalidRequest if the conversation cannot be answered."""
        ...

    async def close(self) -> None: ...


class LocalPartner:
    """A model served by an engine process that lives as long as the chat."""

    def __init__(self, llm: "AsyncLLM", params: SamplingParams) -> None:
        self._llm = llm
        self._params = params

    async def answer(self, messages: list[Message]) -> AsyncGenerator[str, None]:
        prompt = await self._llm.render_chat(messages)
        prompt_ids = await self._llm.encode(prompt, add_special_tokens=False)  # the template wrote them itself
        async with aclosing(self._llm.generate(f"chat-{uuid.uuid4().hex}", prompt_ids, self._params)) as deltas:
            async for delta in deltas:
                yield delta.text

    async def close(self) -> None:
        await self._llm.close()


class RemotePartner:
    """A server at a URL. `sampling` holds the parameters the user gave; for the others the server has its defaults."""

    def __init__(self, client: httpx.AsyncClient, model: str, sampling: dict[str, object]) -> None:
        self._client = client
        self._model = model
        self._sampling = sampling

    @classmethod
    async def connect(
        cls, url: str, *, api_key: str | None, model: str | None, sampling: dict[str, object]
    ) -> "RemotePartner":
        """Reach the server and settle on a model: the one named, else the first it lists."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        base_url = url.rstrip("/").removesuffix("/v1") + "/v1"
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS)  # a first token may take minutes
        client = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=timeout)
        try:
            return cls(client, model or await _first_model(client), sampling)
        except BaseException:
            await client.aclose()
            raise

    async def answer(self, messages: list[Message]) -> AsyncGenerator[str, None]:
        body = {"model": self._model, "messages": messages, "stream": True, **self._sampling}
        try:
            async with self._client.stream("POST", "/chat/completions", json=body) as response:
                if response.is_error:
                    await response.aread()
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    if piece := _piece(line):
                        yield piece
        except httpx.HTTPError as error:
            raise _unreachable(self._client, error) from error

    async def close(self) -> None:
        await self._client.aclose()


async def _first_model(client: httpx.AsyncClient) -> str:
    try:
        response = await client.get("/models")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(client, error) from error
    if response.is_error:
        raise _refusal(response)
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise click.ClickException(f"{response.url} does not list a model as OpenAI's API does") from error


def _piece(line: str) -> str:
    """The text in one line of an event stream; empty for every line that carries none."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return ""
    event = json.loads(data)
    if "error" in event:
        raise click.ClickException(f"the server ended the answer: {_message(event)}")
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def _refusal(response: httpx.Response) -> InvalidRequest | click.ClickException:
    """The error of a response that is one: the request's fault, after which the chat can go on, or the server's."""
    try:
        message = _message(response.json())
    except ValueError:
        message = response.text.strip() or response.reason_phrase
    if response.status_code in (400, 422):
        return InvalidRequest(message)
    return click.ClickException(f"{response.url} answered {response.status_code}: {message}")


def _message(document: object) -> str:
    error = document.get("error", document) if isinstance(document, dict) else document
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _unreachable(client: httpx.AsyncClient, error: Exception) -> click.ClickException:
    return click.ClickException(f"no answer from {client.base_url}: {error or type(error).__name__}")
