"""How a service runs: settings -> app -> server, with the same health routes, limits and way of stopping everywhere."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import structlog
import uvicorn
from fastapi import FastAPI
from opentelemetry.trace import SpanKind
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loopwright_common import problems, telemetry
from loopwright_common.request_heads import BoundedHeads
from loopwright_common.settings import BadSetting, ServiceSettings, describe, load

S = TypeVar("S", bound=ServiceSettings)
Readiness = Callable[[], Awaitable[Mapping[str, str]]]
"""What the service needs, by name: empty text when it is there, otherwise what is missing."""

BODY_BYTES_MAX = 1024 * 1024  # an API request; ingest, which takes batches, sets its own

REQUESTS = Counter("loopwright_http_requests", "HTTP requests.", ["service", "method", "route", "status"])
SECONDS = Histogram("loopwright_http_request_seconds", "Time to answer.", ["service", "route"])

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

log = structlog.get_logger()


def run(name: str, description: str, settings_type: type[S], create_app: Callable[[S], FastAPI], argv: Sequence[str] | None = None) -> None:
    """Runs a service until SIGTERM or SIGINT. Exits 0 after draining, 2 when it was called or set up wrongly, with the remedy on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--help"], ["-h"]):
        print(f"{description}\n\nSettings (environment variables; <NAME>_FILE reads one from a file):\n{describe(settings_type)}")
        return
    if arguments:
        sys.exit(_complain(name, f"unknown argument {arguments[0]!r}: the service is set up by environment variables; try --help"))
    try:
        settings = load(settings_type)
    except BadSetting as error:
        sys.exit(_complain(name, str(error)))
    telemetry.configure(
        name,
        level=settings.log_level,
        format=settings.log_format,
        otlp_endpoint=settings.otlp_endpoint,
        sample_ratio=settings.otlp_sample_ratio,
    )
    try:
        serve(name, settings, create_app(settings))
    finally:
        telemetry.shutdown(min(telemetry.FLUSH_MOST, timedelta(seconds=settings.drain_seconds)))


def serve(name: str, settings: ServiceSettings, app: FastAPI) -> None:
    """Serves ``app`` until a signal. A start-up that fails exits 3, which a supervisor answers with a later try."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        http=BoundedHeads,
        timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
        ws="none",
    )
    server = uvicorn.Server(config)
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn drains, then raises the signal once more for whoever handled it before: nobody, or a clean stop would look like a crash.
        signal.signal(signal_number, lambda *_: None)
    server.run()
    if not server.started:
        sys.exit(3)


def _complain(name: str, message: str) -> int:
    print(f"loopwright-{name} cannot start:\n{message}", file=sys.stderr)
    return 2


def service_app(
    name: str,
    title: str,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    readiness: Readiness,
    *,
    body_bytes_max: int = BODY_BYTES_MAX,
    openapi: bool = True,
) -> FastAPI:
    """A FastAPI app with problem+json errors, ``/healthz``, ``/readyz``, ``/metrics``, a body limit and a span per request."""

    @asynccontextmanager
    async def logged(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app):
            log.info("service_started", service=name)
            yield
        log.info("service_stopped", service=name)

    app = FastAPI(
        title=title,
        version="0.1.0",
        lifespan=logged,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if openapi else None,
        redirect_slashes=False,
    )
    problems.install(app)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return JSONResponse({"status": "ok", "service": name})

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        needs = dict(await readiness())
        missing = {need: reason for need, reason in needs.items() if reason}
        status = {"status": "not ready" if missing else "ready", "service": name, "needs": needs}
        return JSONResponse(status, 503 if missing else 200)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    app.add_middleware(BodyLimit, bytes_max=body_bytes_max)
    app.add_middleware(Instrumented, service=name)
    return app


class BodyTooLarge(Exception):
    """The body grew past the limit while it was read."""


class BodyLimit:
    """Answers 413 as soon as a body is known to be over the limit: by its Content-Length, or while it arrives."""

    def __init__(self, app: ASGIApp, bytes_max: int) -> None:
        self.app = app
        self.bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for key, value in scope["headers"] if key == b"content-length"), None)
        if declared is not None and (not declared.isdigit() or int(declared) > self.bytes_max):
            await self._refuse(scope, receive, send)
            return
        received = 0
        started = exceeded = False

        async def limited() -> Message:
            nonlocal received, exceeded
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.bytes_max:
                    exceeded = True
                    raise BodyTooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if exceeded and not started:
                return  # the framework took the broken read for bad input; 413 is the truth
            started = started or message["type"] == "http.response.start"
            await send(message)

        with suppress(BodyTooLarge):
            await self.app(scope, limited, watched)
        if exceeded and not started:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = problems.problem_response(413, f"The body is over {self.bytes_max} bytes.", headers={"Connection": "close"})
        await response(scope, receive, send)


class Instrumented:
    """A span, a count and a duration per request. The route's template is the label, never the path: paths hold ids."""

    def __init__(self, app: ASGIApp, service: str) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ("/healthz", "/readyz", "/metrics"):
            await self.app(scope, receive, send)
            return
        parent = telemetry.from_outside(value.decode("latin-1") for key, value in scope["headers"] if key == b"traceparent")
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        with telemetry.span(f"{scope['method']}", parent=parent, kind=SpanKind.SERVER) as span:
            try:
                await self.app(scope, receive, watched)
            finally:
                route = str(getattr(scope.get("route"), "path", "unmatched"))
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.response.status_code", status)
                REQUESTS.labels(self.service, scope["method"] if scope["method"] in METHODS else "other", route, str(status)).inc()
                SECONDS.labels(self.service, route).observe(time.perf_counter() - started)
