"""What completions and chat completions have in common, whole or in chunks: envelope, a choice's end, usage."""

import time

from polyserve.api.frontend import Admitted, Frontend, Usage
from polyserve.api.store import StoredCompletion
from polyserve.service.async_llm import ChoiceDelta


def envelope(frontend: Frontend, request: Admitted, *, kind: str) -> dict[str, object]:
    """The members beside choices and usage. `kind` is OpenAI's `object`."""
    return {
        "id": request.request_id,
        "object": kind,
        "created": int(time.time()),
        "model": frontend.model_name,
        "system_fingerprint": frontend.llm.numerics_id,
    }


def ending(delta: ChoiceDelta) -> dict[str, object]:
    """How a choice ends, if it does. `stop_reason`, our own, is the request's stop string or token that ended it."""
    end: dict[str, object] = {"finish_reason": delta.finish_reason}
    if delta.stop_reason is not None:
        end["stop_reason"] = delta.stop_reason
    return end


def usage_object(usage: Usage | StoredCompletion) -> dict[str, object]:
    """The `usage` member."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
