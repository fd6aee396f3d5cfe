"""POST /tokenize, POST /detokenize, GET /tokenizer_info: the model's tokenizer, for clients that have none.

Shapes are vLLM's; lm-evaluation-harness finds these three and uses them as its tokenizer.
"""

import asyncio
from dataclasses import asdict

from fastapi import APIRouter, Response

from polyserve.api.frontend import Frontend, Prompt
from polyserve.api.http.answers import DetokenizeAnswer, TokenizeAnswer, answers
from polyserve.api.http.body import JsonRoute, json_response
from polyserve.api.http.schemas import DetokenizeBody, TokenizeBody
from polyserve.errors import InvalidRequest


def tokenizer_router(frontend: Frontend) -> APIRouter:
    """The routes of this file, for one served model."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/tokenize", responses=answers(TokenizeAnswer))
    async def tokenize(body: TokenizeBody) -> Response:
        frontend.check_model(body.model)
        token_ids = (await _read(frontend, body)).token_ids
        max_model_len = frontend.llm.max_model_len
        value: dict[str, object] = {"count": len(token_ids), "max_model_len": max_model_len, "tokens": token_ids}
        if body.return_token_strs:
            value["token_strs"] = await asyncio.to_thread(_token_strings, frontend, token_ids)
        return json_response(value)

    @router.post("/detokenize", responses=answers(DetokenizeAnswer))
    async def detokenize(body: DetokenizeBody) -> Response:
        frontend.check_model(body.model)
        skips = bool(body.skip_special_tokens)
        text = await frontend.decode(body.tokens, field="tokens", skip_special_tokens=skips)
        return json_response({"prompt": text})

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        info = asdict(frontend.llm.tokenizer.info())
        return json_response({**info, "model_max_length": frontend.llm.max_model_len})

    return router


async def _read(frontend: Frontend, body: TokenizeBody) -> Prompt:
    """The text or the conversation as a prompt."""
    adds = body.add_special_tokens
    if body.prompt is not None and body.messages is None:
        return await frontend.read_prompt(body.prompt, add_special_tokens=adds is not False)
    if body.messages is None or body.prompt is not None:
        raise InvalidRequest("one of prompt and messages is required, and not both", param="prompt")
    return await frontend.read_conversation(body.conversation(body.messages), add_special_tokens=adds is True)


def _token_strings(frontend: Frontend, token_ids: list[int]) -> list[str]:
    return [frontend.llm.tokenizer.token_text(token_id) for token_id in token_ids]
