"""One answer of a model over HTTP, from a server that is started for it."""

from pathlib import Path

import httpx

from polyserve.errors import TrainingError
from polyserve_benchmarks.server import started

PATIENCE_S = 60.0


def ask(model: Path, question: str) -> str:
    """The answer of `polyserve serve MODEL`, greedily. Raises PolyServeError if there is no server or no answer."""
    with started(str(model)) as url:
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 40, "temperature": 0}
        response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S)
    if response.is_error:
        raise TrainingError(f"the server did not answer: {response.text}")
    return str(response.json()["choices"][0]["message"]["content"])
