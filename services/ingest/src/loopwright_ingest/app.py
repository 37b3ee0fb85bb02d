"""The composition root: keys, gatherer, probes and the HTTP edge."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from fastapi import FastAPI
from loopwright_common.bus import Bus
from loopwright_common.clock import Clock, SystemClock
from loopwright_common.nats_bus import open_bus
from loopwright_common.process import service_app
from loopwright_common.projects import Projects

from loopwright_ingest import api
from loopwright_ingest.adapters.http_prober import HttpProber
from loopwright_ingest.admission import Admission
from loopwright_ingest.any_origin import AnyOrigin
from loopwright_ingest.gather import Gatherer
from loopwright_ingest.handlers import Intake
from loopwright_ingest.probes import Probes
from loopwright_ingest.settings import IngestSettings

SERVICE = "ingest"


def create_app(settings: IngestSettings, *, bus: Bus | None = None, clock: Clock | None = None) -> FastAPI:
    """The service's app. ``bus`` and ``clock`` are for tests; the real ones otherwise."""
    running: list[tuple[Bus, Projects]] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        the_bus = bus or await open_bus(settings, SERVICE)
        the_clock = clock or SystemClock()
        projects = Projects(the_bus)
        gatherer = Gatherer(the_bus, timedelta(milliseconds=settings.gather_milliseconds), settings.pending_max)
        admission = Admission(projects, settings.actor_secret.get_secret_value().encode())
        prober = HttpProber(settings.probe_private_addresses)
        probes = Probes(the_bus, projects, prober, gatherer, the_clock, settings.probes_concurrent_max)
        await projects.start()
        await gatherer.start()
        await probes.start()
        app.state.parts = api.Parts(settings, admission, Intake(admission, gatherer, the_clock))
        running.append((the_bus, projects))
        try:
            yield
        finally:
            running.clear()
            await probes.stop()
            await gatherer.stop()
            await projects.stop()
            await prober.close()
            await the_bus.close(timedelta(seconds=settings.drain_seconds))

    async def readiness() -> Mapping[str, str]:
        if not running:
            return {"start": "the service is starting"}
        ((the_bus, projects),) = running
        return {
            "bus": "" if await the_bus.ready() else f"no answer from {settings.nats_url}",
            "configuration": "" if projects.loaded else "the projects' keys were not read yet",
        }

    app = service_app(SERVICE, "Loopwright ingest", lifespan, readiness, body_bytes_max=settings.body_bytes_max)
    app.include_router(api.router)
    app.add_middleware(AnyOrigin)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document with what its hand-written schemas refer to."""
    document = FastAPI.openapi(app)
    components = document.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in api.DEFINITIONS.items():
        components.setdefault(name, schema)
    return document
