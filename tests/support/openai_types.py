"""OpenAI's published types, strictly: nothing that they lack, nothing missing, nothing converted.

What PolyServe adds is named here, and so is where OpenAI's own answers are not what its types say; nothing else passes.
"""

import json
from typing import Any

from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

OF_OBJECT = {
    "chat.completion": ChatCompletion,
    "chat.completion.chunk": ChatCompletionChunk,
    "text_completion": Completion,
    "model": Model,
    "list": CreateEmbeddingResponse,
}
OF_PROMPT = {"prompt_token_ids", "prompt_logprobs"}
EXTENSIONS = {*OF_PROMPT, "max_model_len"}
CHOICE_EXTENSIONS = {*OF_PROMPT, "token_ids", "stop_reason"}


def validated(data: bytes | str, kind: type[BaseModel] | None = None) -> BaseModel:
    """An answer or event as OpenAI's object. Raises ValidationError."""
    value = json.loads(data)
    kind = kind or OF_OBJECT[value["object"]]
    plain = {name: member for name, member in value.items() if name not in EXTENSIONS}
    if "choices" in plain:
        plain["choices"] = [_plain_choice(choice) for choice in plain["choices"]]
    return kind.model_validate_json(json.dumps(plain), strict=True, extra="forbid")


def _plain_choice(choice: dict[str, Any]) -> dict[str, Any]:
    plain = {name: member for name, member in choice.items() if name not in CHOICE_EXTENSIONS}
    if "text" in plain:
        if plain["finish_reason"] is None:
            plain["finish_reason"] = "stop"  # null while a stream goes on
        for name in ("token_logprobs", "top_logprobs"):
            arrays = plain["logprobs"] or {}
            if arrays.get(name) and arrays[name][0] is None:  # nothing predicts the first token of a prompt
                arrays[name] = arrays[name][1:]
    return plain


def validated_events(data: bytes) -> list[BaseModel]:
    """The events of a stream that ends as it should."""
    *events, done, rest = data.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [validated(event.removeprefix("data: ")) for event in events]
