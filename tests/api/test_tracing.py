"""Spans as a collector gets them: over both protocols, in the caller's trace, with times but no texts."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from polyserve.api.tracing import Tracing
from polyserve_proto.v1 import polyserve_pb2 as pb
from polyserve_proto.v1.polyserve_pb2_grpc import PolyServeStub
from support.live_server import live_server

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
CANARY = "zyzzyva-of-the-prompt"


class Collector:
    """What was posted to it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def spans(self) -> list:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        scopes = [scope for request in requests for part in request.resource_spans for scope in part.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


def attributes_of(span) -> dict[str, object]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def traced(collector: Collector, ask) -> dict[str, object]:
    """Spans by name, after one request."""
    tracing = Tracing(collector.endpoint, model_name="fake")
    with live_server(tracing=tracing) as server:
        ask(server)
    tracing.close()
    return {span.name: span for span in collector.spans()}


def test_an_http_request_is_a_part_of_its_clients_trace(collector: Collector) -> None:
    def ask(server) -> None:
        body = {"prompt": CANARY, "max_tokens": 5}
        httpx.post(f"{server.url}/v1/completions", json=body, headers={"traceparent": TRACEPARENT})

    spans = traced(collector, ask)
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    request, answer = spans["POST /v1/completions"], spans["answer"]
    assert request.parent_span_id.hex() == CALLER
    assert answer.parent_span_id == request.span_id
    for name in ("queue", "prefill", "decode"):
        assert spans[name].parent_span_id == answer.span_id
        assert answer.start_time_unix_nano <= spans[name].start_time_unix_nano
        assert spans[name].end_time_unix_nano <= answer.end_time_unix_nano
    known = attributes_of(answer)
    assert known["gen_ai.usage.output_tokens"] == 5
    assert known["gen_ai.request.model"] == "fake"
    assert not any(CANARY.encode() in body for body in collector.bodies)


def test_a_call_is_a_part_of_its_callers_trace(collector: Collector) -> None:
    def ask(server) -> None:
        request = pb.GenerateRequest(text="hi", params=pb.SamplingParams(max_tokens=3))
        with grpc.insecure_channel(server.grpc_address) as channel:
            list(PolyServeStub(channel).Generate(request, metadata=[("traceparent", TRACEPARENT)]))

    answer = traced(collector, ask)["answer"]
    assert (answer.trace_id.hex(), answer.parent_span_id.hex()) == (TRACE, CALLER)


def test_an_answer_that_fails_says_how(collector: Collector) -> None:
    def ask(server) -> None:
        server.llm.fail(2, RuntimeError("no"))
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi"})

    assert attributes_of(traced(collector, ask)["answer"])["error.type"] == "RuntimeError"
