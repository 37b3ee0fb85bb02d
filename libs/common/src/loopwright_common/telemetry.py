"""Structured logs, and traces that run from the HTTP request through the bus to the pull request.

A trace crosses processes as a W3C ``traceparent``: in HTTP and NATS headers, in the outbox, in records that wait for a timer or a poll.
What comes over the bus is ours and is followed, its sampled flag too. What comes over HTTP is anybody's: its trace is continued, so that
a sender finds its own request, but whether it is recorded is decided here (``from_outside``).
"""

from __future__ import annotations

import logging
import random
import re
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from datetime import timedelta
from importlib import metadata
from typing import Any

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from loopwright_common.redaction import redact

LINKS_MAX = 128  # OpenTelemetry's default limit of links per span
FLUSH_MOST = timedelta(seconds=5)  # as long as one export may take
SENSITIVE = ("password", "token", "secret", "authorization", "api_key", "cookie", "dsn")
ERRORS = ("error", "exception")  # what others' code says, which may quote a URL or a header with its credential


_PROPAGATOR = TraceContextTextMapPropagator()
_ratio = 0.0  # of traces that begin here and are recorded; nothing is before there is somewhere to send it


def configure(service: str, *, level: str = "info", format: str = "json", otlp_endpoint: str = "", sample_ratio: float = 1.0) -> None:
    """Sets up logging to standard error and, with an endpoint, the export of traces. Call once, at the start of the process."""
    # Tracebacks are plain: structlog's own for terminals print every frame's locals, which are signals' texts and credentials.
    console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    renderer: Any = structlog.processors.JSONRenderer() if format == "json" else console
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        structlog.processors.format_exc_info,
        _redact,
        renderer,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    configure_traces(service, otlp_endpoint, sample_ratio)


def configure_traces(service: str, otlp_endpoint: str, sample_ratio: float = 1.0, exporter: SpanExporter | None = None) -> None:
    """Makes the process's tracer. Without somewhere to send to, trace ids still travel and are logged, and no span is recorded."""
    global _ratio
    if otlp_endpoint:
        # Imported here: it costs 40 ms and 10 MB that a process without an endpoint need not pay.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint.rstrip("/") + "/v1/traces", timeout=5)
    _ratio = sample_ratio if exporter is not None else 0.0
    # OTEL_RESOURCE_ATTRIBUTES (in Kubernetes: pod, node, namespace) is read by Resource.create and joins these.
    own = {
        "service.name": f"loopwright-{service}",
        "service.namespace": "loopwright",
        "service.version": metadata.version("loopwright-common"),
        "service.instance.id": str(uuid.uuid4()),
    }
    provider = TracerProvider(resource=Resource.create(own), sampler=ParentBased(root=TraceIdRatioBased(_ratio)))
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def shutdown(within: timedelta = FLUSH_MOST) -> bool:
    """Sends what is still buffered, for no longer than ``within``; False when not all of it was sent by then.

    The SDK would wait 30 s for a collector that takes connections and says nothing (BatchSpanProcessor of OpenTelemetry 1.45), longer than
    the process is given to stop: what did not get out is let go, as its thread is with the process.
    """
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        return True
    sending = threading.Thread(target=provider.shutdown, name="last traces", daemon=True)
    sending.start()
    sending.join(within.total_seconds())
    if sending.is_alive():
        structlog.get_logger().warning("traces_not_sent", reason=f"the collector took longer than {within.total_seconds():g} s")
        return False
    return True


def traceparent() -> str:
    """The current span as a W3C ``traceparent`` value; empty outside a trace."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & TraceFlags.SAMPLED:02x}"


def from_outside(headers: Iterable[str]) -> str:
    """The ``traceparent`` of a request from anywhere, with our own word on whether it is recorded; empty when there is none to follow.

    A stranger's flag could record everything (at our cost) or nothing (to hide), and a trace id that the stranger chose would sway a
    decision made from it: chance decides, as it does for a trace that begins here. Two headers or a malformed one are ignored, as the
    W3C recommendation (Trace Context, section 4.3) wants.
    """
    values = list(headers)
    context = _span_context(values[0]) if len(values) == 1 else None
    if context is None:
        return ""
    sampled = random.random() < _ratio  # noqa: S311  a sample, not a secret
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{sampled:02x}"


_UNRECORDED = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-00")


def passed_on(parent: str) -> str | None:
    """The ``traceparent`` for what is sent where ``part`` would record no span: it need not be made. None where it may record one."""
    if not parent:
        sampled = trace.get_current_span().get_span_context().trace_flags & TraceFlags.SAMPLED
        return None if sampled else traceparent()
    return parent if _UNRECORDED.fullmatch(parent) is not None else None


def _span_context(parent: str) -> SpanContext | None:
    if not parent:
        return None
    context = trace.get_current_span(_PROPAGATOR.extract({"traceparent": parent}, Context())).get_span_context()
    return context if context.is_valid else None


def _context(parent: str) -> Context | None:
    found = _span_context(parent)
    return trace.set_span_in_context(NonRecordingSpan(found), Context()) if found is not None else None


def links(parents: Iterable[str]) -> list[Link]:
    """Links to other traces, by their ``traceparent``; at most as many as a span keeps."""
    found = (_span_context(parent) for parent in dict.fromkeys(parents))
    return [Link(context) for context in found if context is not None][:LINKS_MAX]


@contextmanager
def span(
    name: str, *, parent: str = "", kind: SpanKind = SpanKind.INTERNAL, linked: Iterable[str] = (), **attributes: str | int | float | bool
) -> Iterator[Span]:
    """A span around a piece of work; ``parent`` is a ``traceparent`` from elsewhere, the current span otherwise.

    ``linked`` are the ``traceparent`` values of other traces that had a part in it. Attributes are written with ``__`` for a dot.
    """
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    tracer = trace.get_tracer("loopwright")
    with tracer.start_as_current_span(name, context=_context(parent), kind=kind, attributes=named, links=links(linked)) as current:
        yield current


@contextmanager
def part(name: str, parent: str, also: Iterable[str] = (), **attributes: str | int | float | bool) -> Iterator[Span]:
    """A span for one message of a batch, in that message's own trace and linked to the batch's span.

    A batch of one is handled in its message's trace already: there it is a child of the current span. ``also`` are further messages that
    this piece of work takes care of.
    """
    context, current = _span_context(parent), trace.get_current_span().get_span_context()
    if context is None or (current.is_valid and current.trace_id == context.trace_id):
        with span(name, parent="", kind=SpanKind.INTERNAL, linked=also, **attributes) as child:
            yield child
    else:
        with span(name, parent=parent, kind=SpanKind.INTERNAL, linked=(traceparent(), *also), **attributes) as own:
            yield own


@contextmanager
def continued(parent: str) -> Iterator[None]:
    """Goes on in the trace of ``parent`` without a span of its own: what is sent within carries it. Nothing changes when it is empty."""
    context = _context(parent)
    if context is None:
        yield
        return
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


def annotate(**attributes: str | int | float | bool) -> None:
    """Adds attributes to the current span; ``k8s__job__name`` is written ``k8s.job.name``."""
    trace.get_current_span().set_attributes({key.replace("__", "."): value for key, value in attributes.items()})


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
        elif key in ERRORS and isinstance(event[key], str):
            event[key] = redact(event[key])
    return event
