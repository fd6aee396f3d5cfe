"""Traces for an OpenTelemetry collector: where a request's time went, as a part of its client's own trace.

    HTTP request (FastAPI's span) or the caller's span (gRPC) -> answer -> queue, prefill, decode
The last three are what the engine did with a prompt, from the times at which it was sent and at which tokens came. They
are written when the answer ends, off the event loop, and hold numbers and names, never texts. Needs the extra `otel`.

Source   https://opentelemetry.io/docs/specs/semconv/gen-ai/ for attributes, https://www.w3.org/TR/trace-context/
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from polyserve import __version__
from polyserve.api.metrics import Record
from polyserve.errors import SettingsError

NANOSECONDS = 1_000_000_000


class Tracing:
    """Sends spans to one collector. Raises SettingsError if OpenTelemetry's packages are not there."""

    def __init__(self, endpoint: str, *, model_name: str) -> None:
        try:
            from opentelemetry import context, propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise SettingsError("--otlp-traces-endpoint needs the extra: pip install 'polyserve-lm[otel]'") from error
        self._context, self._propagate, self._trace = context, propagate, trace
        self.provider = TracerProvider(
            resource=Resource.create({"service.name": "polyserve", "service.version": __version__})
        )
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self.provider.get_tracer("polyserve", __version__)
        self._model_name = model_name
        self._epoch_s = time.time() - time.monotonic()  # of the clock that requests are timed by

    def continue_from(self, metadata: Mapping[str, str]) -> None:
        """Let what this task traces be a part of the trace that a call's metadata names, if it does."""
        self._context.attach(self._propagate.extract(metadata))

    @contextmanager
    def answer(self, request_id: str, record: Record) -> Iterator[None]:
        """Trace one prompt's answer, which is made inside."""
        parent = self._context.get_current()
        error: str | None = None
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            self._write(parent, request_id, record, error)

    def close(self) -> None:
        """Send what is left. Blocks, a few seconds at most."""
        self.provider.shutdown()

    def _write(self, parent: Any, request_id: str, record: Record, error: str | None) -> None:
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "chat" if request_id.startswith("chat") else "text_completion",
            "gen_ai.request.model": self._model_name,
            "gen_ai.response.id": request_id,
            "gen_ai.usage.input_tokens": record.num_prompt_tokens,
            "gen_ai.usage.output_tokens": record.num_tokens,
        }
        if error is not None:
            attributes["error.type"] = error
        end = time.monotonic()
        span = self._tracer.start_span(
            "answer", context=parent, start_time=self._at(record.arrived), attributes=attributes
        )
        inside = self._trace.set_span_in_context(span, parent)
        places = [("queue", record.arrived), ("prefill", record.sent_at), ("decode", record.first_at), ("", end)]
        met = [(name, begin) for name, begin in places if begin is not None]
        for (name, begin), (_, until) in pairwise(met):
            self._tracer.start_span(name, context=inside, start_time=self._at(begin)).end(self._at(until))
        span.end(self._at(end))

    def _at(self, monotonic_s: float) -> int:
        return round((monotonic_s + self._epoch_s) * NANOSECONDS)
