"""The composition root: which bus, where repositories come from, which model if any, and who handles what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from fastapi import FastAPI
from loopwright_common.bus import Bus, ConsumerSpec
from loopwright_common.clock import Clock, SystemClock
from loopwright_common.contracts.subjects import REPORTS_READY
from loopwright_common.nats_bus import open_bus
from loopwright_common.process import service_app
from loopwright_common.projects import Projects
from loopwright_repositories.checkouts import Checkouts
from loopwright_repositories.forges.local import LocalForge

from loopwright_investigator import api
from loopwright_investigator.adapters.bus_ports import BusRates, StoredBundles
from loopwright_investigator.adapters.forge_source import ForgeSource
from loopwright_investigator.adapters.git_history import MirroredRepositories, PlainSource, Source
from loopwright_investigator.adapters.model_advisor import open_advisor
from loopwright_investigator.handlers import Investigations
from loopwright_investigator.ports import Advisor, Bundles, Repositories
from loopwright_investigator.settings import InvestigatorSettings

SERVICE = "investigator"


class Service:
    """The running parts. ``start`` returns when reports are being taken; ``stop`` drains."""

    def __init__(self, bus: Bus, repositories: Repositories, clock: Clock, settings: InvestigatorSettings) -> None:
        self.bus = bus
        self._repositories = repositories
        self._clock = clock
        self._settings = settings
        self._advisor: Advisor | None = None
        self._projects = Projects(bus)
        self.parts: tuple[Investigations, Bundles, str] | None = None

    async def start(self) -> None:
        await self._projects.start()
        await self._projects.wait_loaded()
        self._advisor = await open_advisor(self._settings, self.bus, self._clock)
        bundles = await StoredBundles.open(self.bus, self._settings.bundles_max)
        investigations = Investigations(
            self.bus,
            self._projects,
            self._repositories,
            BusRates(self.bus),
            bundles,
            self._clock,
            advisor=self._advisor,
            seconds_max=self._settings.investigation_seconds_max,
        )
        self.parts = (investigations, bundles, self._advisor.name if self._advisor is not None else "")
        await self.bus.consume(
            ConsumerSpec(
                "investigator-ready",
                SERVICE,
                (REPORTS_READY,),
                concurrency=self._settings.concurrency,
                retry_first=timedelta(seconds=2),
                retry_most=timedelta(minutes=1),  # a person waits for the result
            ),
            investigations.handle,
        )

    async def stop(self, drain: timedelta) -> None:
        await self.bus.close(drain)
        await self._projects.stop()
        if self._advisor is not None:
            await self._advisor.close()


def create_app(settings: InvestigatorSettings) -> FastAPI:
    """The service's app; its parts live as long as the app's lifespan."""
    running: list[Service] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            source: Source = PlainSource()
            if settings.forge_url:
                token = settings.forge_token if settings.forge_token.get_secret_value() else None
                source = ForgeSource(await stack.enter_async_context(LocalForge(settings.forge_url, token)))
            repositories = MirroredRepositories(Checkouts(settings.mirrors_dir), source)
            service = Service(await open_bus(settings, SERVICE), repositories, SystemClock(), settings)
            try:
                await service.start()
                running.append(service)
                yield
            finally:
                running.clear()
                await service.stop(timedelta(seconds=settings.drain_seconds))

    async def readiness() -> Mapping[str, str]:
        if not running:
            return {"start": "the service is starting"}
        return {"bus": "" if await running[0].bus.ready() else f"no answer from {settings.nats_url}"}

    app = service_app(SERVICE, "Loopwright investigator", lifespan, readiness)
    app.include_router(api.router(lambda: running[0].parts if running else None))
    return app
