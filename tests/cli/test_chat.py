"""`polyserve chat --url`: turns, commands, errors and Ctrl-C, against a small server that speaks OpenAI's protocol."""

import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from polyserve.cli.main import main


def event(text: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n".encode()


def echo(body: dict[str, Any]) -> Iterator[bytes]:
    """Answers `re: <last message>`, in two pieces."""
    yield b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n'
    yield event("re: ")
    yield event(body["messages"][-1]["content"])
    yield b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


@dataclass
class FakeServer:
    url: str = ""
    models: list[str] = field(default_factory=lambda: ["first", "second"])
    answer: Callable[[dict[str, Any]], Iterator[bytes]] = echo
    refusal: tuple[int, bytes] | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def conversations(self) -> list[list[str]]:
        return [[message["content"] for message in body["messages"]] for body in self.bodies]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.keys.append(self.headers.get("Authorization"))
            self.reply(200 if self.path == "/v1/models" else 404)
            self.wfile.write(json.dumps({"data": [{"id": name} for name in fake.models]}).encode())

        def do_POST(self) -> None:
            fake.keys.append(self.headers.get("Authorization"))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.bodies.append(body)
            if fake.refusal is not None:
                self.reply(fake.refusal[0])
                self.wfile.write(fake.refusal[1])
                return
            self.reply(200 if self.path == "/v1/chat/completions" else 404)
            for piece in fake.answer(body):
                self.wfile.write(piece)

        def reply(self, status: int) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{http.server_port}"
    yield fake
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def typed(monkeypatch) -> Callable[..., None]:
    return lambda *lines: monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_each_turn_sends_the_whole_conversation(server, typed, capsys):
    typed("one", "", "two")
    assert main(["chat", "--url", server.url]) == 0
    assert capsys.readouterr().out == "re: one\nre: two\n"
    assert server.conversations == [["one"], ["one", "re: one", "two"]]
    assert [message["role"] for message in server.bodies[1]["messages"]] == ["user", "assistant", "user"]


def test_reset_forgets_all_but_the_system_prompt(server, typed):
    typed("one", "/reset", "two")
    assert main(["chat", "--url", server.url, "--system", "be brief"]) == 0
    assert server.conversations == [["be brief", "one"], ["be brief", "two"]]
    assert server.bodies[1]["messages"][0]["role"] == "system"


def test_exit_leaves_at_once(server, typed):
    typed("one", "/exit", "two")
    assert main(["chat", "--url", server.url]) == 0
    assert server.conversations == [["one"]]


def test_help_lists_the_commands_and_an_unknown_one_is_refused(server, typed, capsys):
    typed("/help", "/restart now")
    assert main(["chat", "--url", server.url]) == 0
    shown = capsys.readouterr().err
    for command in ("/reset", "/exit", "/help"):
        assert command in shown
    assert "no such command: /restart" in shown
    assert server.bodies == []


def test_the_first_listed_model_is_asked_unless_one_is_named(server, typed):
    typed("one")
    main(["chat", "--url", f"{server.url}/v1/"])
    typed("one")
    main(["chat", "--url", server.url, "--model-name", "second"])
    assert [body["model"] for body in server.bodies] == ["first", "second"]


def test_only_sampling_parameters_that_were_given_are_sent(server, typed):
    typed("one")
    main(
        ["chat", "--url", server.url, "--temperature", "0", "--stop", "x", "--max-tokens", "5", "--logit-bias", "3:-1"]
    )
    [body] = server.bodies
    assert body == {
        "model": "first",
        "messages": [{"role": "user", "content": "one"}],
        "stream": True,
        "temperature": 0.0,
        "stop": ["x"],
        "max_tokens": 5,
        "logit_bias": {"3": -1.0},
    }


def test_the_key_comes_from_the_flag_or_the_environment(server, typed, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    typed()
    main(["chat", "--url", server.url])
    main(["chat", "--url", server.url, "--api-key", "from-flag"])
    assert server.keys == ["Bearer from-environment", "Bearer from-flag"]


def test_a_refused_turn_is_shown_and_taken_back(server, typed, capsys):
    server.refusal = (400, b'{"error": {"message": "the prompt is 3 tokens too long", "type": "x"}}')

    def lines() -> Iterator[str]:
        yield "too long\n"
        server.refusal = None
        yield "short\n"

    reading = lines()
    typed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", type("Lines", (io.StringIO,), {"readline": lambda *_: next(reading, "")})())
        assert main(["chat", "--url", server.url]) == 0
    captured = capsys.readouterr()
    assert captured.err == "the prompt is 3 tokens too long\n"
    assert captured.out == "re: short\n"
    assert server.conversations[-1] == ["short"]


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((401, b'{"error": {"message": "wrong key"}}'), "answered 401: wrong key"),
        ((500, b"<html>"), "answered 500: <html>"),
        ((503, b'{"detail": "busy"}'), "answered 503: {'detail': 'busy'}"),
    ],
)
def test_a_servers_failure_ends_the_chat_with_one_line(refusal, message, server, typed, capsys):
    server.refusal = refusal
    typed("one")
    assert main(["chat", "--url", server.url]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_an_error_inside_a_stream_ends_the_chat_with_one_line(server, typed, capsys):
    server.answer = lambda body: iter([event("begin"), b'data: {"error": {"message": "engine died"}}\n\n'])
    typed("one")
    assert main(["chat", "--url", server.url]) == 1
    assert capsys.readouterr().err.endswith("the server ended the answer: engine died\n")


def test_an_unreachable_server_is_one_line(capsys):
    assert main(["chat", "--url", "http://127.0.0.1:9"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("polyserve: no answer from http://127.0.0.1:9/v1/")
    assert shown.count("\n") == 1


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(server, typed, capsys):
    def interrupted(body: dict[str, Any]) -> Iterator[bytes]:
        yield event("I was say")
        server.answer = echo
        waiting.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        yield from ()

    waiting = threading.Event()
    server.answer = interrupted
    typed("one", "two")
    printed = print

    def print_and_tell(*values: object, **options: Any) -> None:
        printed(*values, **options)
        waiting.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", print_and_tell)
        assert main(["chat", "--url", server.url]) == 0
    assert capsys.readouterr().out == "I was say\nre: two\n"
    assert server.conversations == [["one"], ["one", "I was say", "two"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "http://x", "--dtype", "float32"], "--dtype has no effect with --url"),
        (["--url", "http://x", "smollm2"], "MODEL has no effect with --url"),
        (["--url", "http://x", "--chat-template", "polylm-chat"], "--chat-template has no effect with --url"),
        (["smollm2", "--model-name", "x"], "--model-name has no effect without --url"),
        (["smollm2", "--api-key", "x"], "--api-key has no effect without --url"),
        (["--url", "http://x", "--temperature", "-1"], "--temperature must be at least 0"),
    ],
)
def test_a_flag_without_effect_is_refused(arguments, message, capsys):
    assert main(["chat", *arguments]) == 2
    assert message in capsys.readouterr().err
