"""Nothing a client sends makes the server connect to anything, open what it names, or run what it says."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.live_server import LiveServer

CHAT = "/v1/chat/completions"
EVENTS = ("socket.connect", "socket.getaddrinfo", "urllib.Request", "subprocess.Popen", "os.system")


class Watch:
    """What the server's thread asked the operating system for, by Python's own account."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.thread: int | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if (
            self.thread is not None
            and threading.get_ident() != self.thread
            and (event in EVENTS or (event == "open" and "canary" in str(arguments[0])))
        ):
            self.seen.append(f"{event} {arguments!r}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture
def trap() -> Iterator[socket.socket]:
    """An address at which somebody would notice a visitor."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.setblocking(False)
        yield opened


def test_urls_and_paths_in_any_field_lead_nowhere(
    server: LiveServer, client: httpx.Client, watch: Watch, trap: socket.socket, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.write_text("secret words")
    address = f"127.0.0.1:{trap.getsockname()[1]}"
    targets = [f"http://{address}/x", f"file://{canary}", str(canary), f"../../../..{canary}", "{{ ''.__class__ }}"]
    watch.thread = threading.get_ident()
    for target in targets:
        parts = [{"type": "image_url", "image_url": {"url": target}}]
        bodies = [
            (CHAT, {"messages": [{"role": "user", "content": target}]}),
            (CHAT, {"messages": [{"role": "user", "content": parts}]}),
            (CHAT, {"messages": [{"role": "user", "content": "x", "name": target}], "user": target}),
            (CHAT, {"messages": [{"role": "user", "content": "x"}], "chat_template": target}),
            ("/v1/completions", {"prompt": target, "stop": [target]}),
            ("/v1/completions", {"prompt": "x", "model": target}),
            ("/v1/completions", {"prompt": "x", "lora_path": target, "chat_template_kwargs": {"x": target}}),
            ("/tokenize", {"prompt": target}),
        ]
        for path, body in bodies:
            response = client.post(path, json=body, headers={"X-Forwarded-Host": address, "Referer": target})
            assert response.status_code < 500
            assert "secret words" not in json.dumps(response.json())
    watch.thread = None
    with pytest.raises(BlockingIOError):
        trap.accept()
    assert watch.seen == []


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "refusal"])
def test_a_part_that_is_not_text_is_refused_by_name(client: httpx.Client, kind: str) -> None:
    part = {"type": kind, kind: {"url": "file:///etc/passwd", "data": "", "format": "wav", "file_id": "x"}}
    response = client.post(CHAT, json={"messages": [{"role": "user", "content": [part]}]})
    assert response.status_code == 400
    assert repr(kind) in response.json()["error"]["message"]
