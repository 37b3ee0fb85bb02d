"""Structured logs, and traces that run from the HTTP request through the bus to the pull request."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind

SENSITIVE = ("password", "token", "secret", "authorization", "api_key", "cookie", "dsn")


def configure(service: str, *, level: str = "info", format: str = "json", otlp_endpoint: str = "") -> None:
    """Sets up logging to standard error and, with an endpoint, the export of traces. Call once, at the start of the process."""
    renderer: Any = structlog.processors.JSONRenderer() if format == "json" else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        _redact,
    ]
    structlog.configure(
        processors=[*processors, structlog.processors.format_exc_info, renderer] if format == "json" else [*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    _configure_traces(service, otlp_endpoint)


def _configure_traces(service: str, otlp_endpoint: str, exporter: SpanExporter | None = None) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": f"loopwright-{service}"}))
    if otlp_endpoint:
        # Imported here: it costs 40 ms and 10 MB that a process without an endpoint need not pay.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint.rstrip("/") + "/v1/traces", timeout=5)
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def shutdown() -> None:
    """Sends what is still buffered."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def traceparent() -> str:
    """The current span as a W3C ``traceparent`` value; empty outside a trace."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent", "")


@contextmanager
def span(name: str, *, parent: str = "", kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int | float | bool) -> Iterator[Span]:
    """A span around a piece of work; ``parent`` is a ``traceparent`` from elsewhere, the current span otherwise."""
    context: Context | None = propagate.extract({"traceparent": parent}) if parent else None
    tracer = trace.get_tracer("loopwright")
    with tracer.start_as_current_span(name, context=context, kind=kind, attributes=dict(attributes)) as current:
        yield current


@contextmanager
def bound(**fields: str | int) -> Iterator[None]:
    """Binds fields to every log line within: ``project``, ``report_id``, ``signal_id``, ``attempt``."""
    with structlog.contextvars.bound_contextvars(**fields):
        yield


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format(context.trace_id, "032x")
        event["span_id"] = format(context.span_id, "016x")
    return event


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in event:
        if any(word in key.lower() for word in SENSITIVE):
            event[key] = "(redacted)"
    return event
