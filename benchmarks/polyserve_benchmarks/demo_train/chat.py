"""One answer of a model over HTTP, from a server that is started for it."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import httpx

from polyserve.errors import TrainingError

PATIENCE_S = 60.0


def ask(polyserve: Sequence[str], model: Path, question: str) -> str:
    """The answer of `polyserve serve MODEL`, greedily. Raises TrainingError if there is no server or no answer."""
    command = [*polyserve, "serve", str(model), "--port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            address = re.search(r"at (http://\S+) \(HTTP\)", line)
            if address is None:
                raise TrainingError(f"the server did not start: {line.strip() or 'see above'}")
            body = {"messages": [{"role": "user", "content": question}], "max_tokens": 40, "temperature": 0}
            response = httpx.post(f"{address[1]}/v1/chat/completions", json=body, timeout=PATIENCE_S)
        finally:
            server.terminate()
    if response.is_error:
        raise TrainingError(f"the server did not answer: {response.text}")
    return str(response.json()["choices"][0]["message"]["content"])
