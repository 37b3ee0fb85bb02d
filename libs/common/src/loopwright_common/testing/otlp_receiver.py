"""A real OTLP/HTTP receiver for tests: takes what exporters send (protobuf, plain or gzip) and keeps the spans in memory.

Run on an address that pods reach, it sees the traces of a cluster too: ``OtlpReceiver("0.0.0.0", 4318)``.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

BODY_BYTES_MAX = 16 * 1024 * 1024  # exporters send at most 512 spans at a time
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it arrived. Ids are in hexadecimal; ``parent_id`` is empty at the root."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    attributes: dict[str, Any] = field(default_factory=dict)
    resource: dict[str, Any] = field(default_factory=dict)
    links: tuple[str, ...] = ()  # trace ids


class OtlpReceiver:
    """``with OtlpReceiver() as receiver``: give ``receiver.endpoint`` to exporters, read ``receiver.spans``."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                if self.path != "/v1/traces" or length > BODY_BYTES_MAX:
                    self.send_error(404 if length <= BODY_BYTES_MAX else 413)
                    return
                body = self.rfile.read(length)
                if self.headers.get("Content-Encoding", "") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing: a test's output is for the test."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._lock = threading.Lock()
        self._spans: dict[tuple[str, str], ReceivedSpan] = {}  # an exporter that heard no answer sends again

    def __enter__(self) -> OtlpReceiver:
        threading.Thread(target=self._server.serve_forever, name="otlp-receiver", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keeps the spans of one export."""
        found = {}
        for group in request.resource_spans:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                for span in scope.spans:
                    received = ReceivedSpan(
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        name=span.name,
                        service=str(resource.get("service.name", "")),
                        attributes=_attributes(span.attributes),
                        resource=resource,
                        links=tuple(link.trace_id.hex() for link in span.links),
                    )
                    found[received.trace_id, received.span_id] = received
        with self._lock:
            self._spans |= found

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All so far."""
        with self._lock:
            return list(self._spans.values())

    def traces(self) -> dict[str, list[ReceivedSpan]]:
        """The spans by trace id."""
        found: dict[str, list[ReceivedSpan]] = defaultdict(list)
        for span in self.spans:
            found[span.trace_id].append(span)
        return dict(found)

    def wait_for_trace(self, wanted: Iterable[tuple[str, str]], seconds: float = 30.0) -> list[ReceivedSpan]:
        """The spans of the first trace that has all of ``wanted``: pairs of a service's name and the beginning of a span's name.

        Every service exports on its own clock, every five seconds, so a child may arrive before its parent: while a span's parent is still
        missing this waits on, and answers with what there is only when ``seconds`` have passed (``orphans`` then says what is missing).
        Raises AssertionError that says what the nearest trace lacks.
        """
        steps = list(wanted)
        deadline = time.monotonic() + seconds
        while True:
            lacks = {identifier: _lacking(spans, steps) for identifier, spans in self.traces().items()}
            nearest = min(lacks, key=lambda identifier: len(lacks[identifier]), default="")
            late = time.monotonic() > deadline
            if nearest and not lacks[nearest]:
                spans = self.traces()[nearest]
                if late or not orphans(spans):
                    return spans
            if late:
                seen = sorted({f"{span.service}: {span.name}" for span in self.traces().get(nearest, [])})
                raise AssertionError(f"of {len(lacks)} traces none has every step; the nearest lacks {lacks.get(nearest)} and has {seen}")
            time.sleep(LOOK_SECONDS)


def _lacking(spans: list[ReceivedSpan], steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [step for step in steps if not any(span.service == step[0] and span.name.startswith(step[1]) for span in spans)]


def orphans(spans: Iterable[ReceivedSpan]) -> list[ReceivedSpan]:
    """Spans whose parent was never received: where a trace came apart."""
    known = {span.span_id: span for span in spans}
    return [span for span in known.values() if span.parent_id and span.parent_id not in known]


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}


# The way of a signal through every service, for ``wait_for_trace``: what Loopwright promises to be one trace.
LOOP = (
    ("loopwright-ingest", ""),  # a request, or a health check of our own
    ("loopwright-cluster", "group signal"),
    ("loopwright-gateway", "take signals"),
    ("loopwright-investigator", "handle investigator-ready"),
    ("loopwright-gateway", "answer questions.rates.query"),
    ("loopwright-gateway", "handle gateway-investigations-completed"),
    ("loopwright-pr-agent", "handle pr-agent-requests"),
    ("loopwright-pr-agent", "sandbox run"),
    ("loopwright-pr-agent", "publisher publish"),
    ("loopwright-gateway", "handle gateway-changes-opened"),
)
LOOP_AFTER_THE_MERGE = (
    ("loopwright-pr-agent", "pull request merged"),
    ("loopwright-gateway", "handle gateway-changes-merged"),
    ("loopwright-measure", "handle measure-merges"),
    ("loopwright-measure", "verdict"),
    ("loopwright-gateway", "handle gateway-measurements-completed"),
)
