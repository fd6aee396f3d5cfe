"""What answers of completions and of chat completions have in common, whole or in chunks: the envelope and usage."""

import time

from polyserve.api.frontend import Admitted, Frontend, Usage


def envelope(frontend: Frontend, request: Admitted, *, kind: str) -> dict[str, object]:
    """The members beside choices and usage. `kind` is OpenAI's `object`."""
    return {
        "id": request.request_id,
        "object": kind,
        "created": int(time.time()),
        "model": frontend.model_name,
        "system_fingerprint": frontend.llm.numerics_id,
    }


def usage_object(usage: Usage) -> dict[str, object]:
    """The `usage` member."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
