"""The composition root: database, bus, handlers, API and pages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog
from fastapi import FastAPI
from loopwright_common.bus import Bus, BusUnavailable, ConsumerSpec
from loopwright_common.clock import Clock, SystemClock
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.queries import ExposureMinute, RatesAnswer, RatesQuery
from loopwright_common.nats_bus import open_bus
from loopwright_common.process import service_app

from loopwright_gateway import metrics, pages
from loopwright_gateway.adapters.accounts import SqlAccounts
from loopwright_gateway.adapters.inbox import Inbox
from loopwright_gateway.adapters.store import SqlStore
from loopwright_gateway.api import administration, changes, grouping, reports, stream
from loopwright_gateway.api.parts import Parts
from loopwright_gateway.catalogue import Catalogue
from loopwright_gateway.handlers import Facts, handlers
from loopwright_gateway.life import SERVICE
from loopwright_gateway.outbox import Dispatcher
from loopwright_gateway.people import People
from loopwright_gateway.settings import GatewaySettings

RATES_LIMIT = 100_000
PRUNE_EVERY = timedelta(hours=1)
WATCH_EVERY = timedelta(seconds=15)  # as often as Prometheus asks
log = structlog.get_logger()


class Service:
    """The running parts. ``start`` returns when facts are being handled; ``stop`` drains."""

    def __init__(self, settings: GatewaySettings, bus: Bus, store: SqlStore, clock: Clock) -> None:
        self.settings = settings
        self.bus = bus
        self.store = store
        self.clock = clock
        self.catalogue = Catalogue(store, clock)
        self.people = People(store, self.catalogue.get, clock)
        self.facts = Facts(store, self.catalogue.get, clock)
        self.dispatcher = Dispatcher(store, bus)
        self.inbox = Inbox(store, self.catalogue.get)
        self._tasks: list[asyncio.Task[None]] = []

    def parts(self) -> Parts:
        accounts = SqlAccounts(self.store, self.settings.operator_token.get_secret_value())
        return Parts(
            self.settings, self.store, self.inbox, self.people, self.catalogue, accounts, self.bus, self.clock, self.wait_committed
        )

    async def start(self) -> None:
        await self.catalogue.load()
        await self.dispatcher.start()
        self._tasks = [
            asyncio.create_task(self._wake_dispatcher(), name="wake"),
            asyncio.create_task(self._prune(), name="prune"),
            asyncio.create_task(self._watch(), name="watch"),
            asyncio.create_task(self.catalogue.follow(self.bus), name="catalogue"),
        ]
        batches = {"batch_max": 100, "ordered": True, "ack_wait": timedelta(seconds=60), "attempts_max": 20}
        await self.bus.consume_batches(ConsumerSpec("gateway-groups", SERVICE, (s.GROUPS_UPDATED,), **batches), self.facts.grouped)  # type: ignore[arg-type]
        await self.bus.consume_batches(ConsumerSpec("gateway-exposures", SERVICE, (s.EXPOSURES,), **batches), self.facts.exposed)  # type: ignore[arg-type]
        for pattern, handler in handlers(self.facts).items():
            subject = next(subject for subject in s.SUBJECTS if subject.pattern == pattern)
            name = "gateway-" + pattern.replace("{project}.", "").replace(".{service}", "").replace(".", "-")
            await self.bus.consume(ConsumerSpec(name, SERVICE, (subject,), ordered=True, attempts_max=20), handler)
        await self.bus.on_timer(SERVICE, self.facts.timer)
        await self.bus.answer(s.RATES_QUERY, self.answer_rates)

    async def stop(self, drain: timedelta) -> None:
        await self.dispatcher.stop()
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.bus.close(drain)
        await self.store.close()

    async def wait_committed(self, seconds: float) -> None:
        """Returns after the next transaction of this process, or after ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self.store.committed:
                await self.store.committed.wait()

    async def answer_rates(self, query: RatesQuery) -> RatesAnswer:
        """``rates.query``: exact counts per minute, as the database has them now."""
        services = [query.service] if query.service else []
        people = 0
        if query.report_id is not None:
            async with self.store.transaction() as unit:
                report = await unit.report(query.report_id)
            if report is not None:
                services = services or report.services
                people = report.people_count
        signals, exposure, truncated = await self.store.rates(
            query.project, query.report_id, services, query.environment, query.start, query.end, RATES_LIMIT
        )
        deploys = await self.inbox.deploys(query.project, services, query.start) if services else []
        return RatesAnswer(
            signals=tuple(signals),
            exposure=tuple(ExposureMinute(**minute) for minute in exposure),
            deploys=tuple(deploy for deploy in deploys if deploy.deployed_at < query.end),
            people_count=people,
            truncated=truncated,
        )

    async def _wake_dispatcher(self) -> None:
        while True:
            await self.wait_committed(60.0)
            self.dispatcher.wake()

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(WATCH_EVERY.total_seconds())

    async def look(self) -> None:
        """Reads how things stand into the gauges of ``/metrics``."""
        try:
            metrics.show_standing(await self.store.standing(self.clock.now()))
        except Exception as error:  # whatever the driver raises
            metrics.forget_standing()
            log.warning("standing_not_read", error=str(error)[:500])
        try:
            metrics.show_usage(await self.bus.usage())
        except BusUnavailable as error:
            metrics.forget_usage()
            log.warning("usage_not_read", error=str(error)[:500])

    async def prune(self) -> int:
        """Forgets what is older than the settings keep; how many rows."""
        now, kept = self.clock.now(), self.settings
        removed = await self.store.prune(
            now - timedelta(days=kept.seen_days), now - timedelta(days=kept.rates_days), kept.stream_events_max
        )
        log.info("pruned", rows=removed)
        return removed

    async def _prune(self) -> None:
        while True:
            try:
                await self.prune()
            except Exception as error:
                log.error("prune_failed", exc_info=error)
            await asyncio.sleep(PRUNE_EVERY.total_seconds())


def create_app(settings: GatewaySettings, *, bus: Bus | None = None, clock: Clock | None = None) -> FastAPI:
    """The service's app. ``bus`` and ``clock`` are for tests; the real ones otherwise."""
    running: list[Service] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = SqlStore.open(settings.database_url.get_secret_value())
        if settings.migrate_at_start:
            await store.migrate()
        service = Service(settings, bus or await open_bus(settings, SERVICE), store, clock or SystemClock())
        try:
            await service.start()
            app.state.parts = service.parts()
            running.append(service)
            yield
        finally:
            app.state.stopping = True
            running.clear()
            await service.stop(timedelta(seconds=settings.drain_seconds))

    async def readiness() -> Mapping[str, str]:
        if not running:
            return {"start": "the service is starting"}
        (service,) = running
        return {
            "bus": "" if await service.bus.ready() else f"no answer from {settings.nats_url}",
            "database": "" if await service.store.ready() else "the database does not answer",
        }

    app = service_app(SERVICE, "Loopwright", lifespan, readiness)
    app.state.stream_clients = set()
    app.state.stopping = False
    for module in (reports, grouping, changes, administration, stream):
        app.include_router(module.router)
    pages.install(app)
    app.add_middleware(pages.Guarded, hosts=settings.allowed_hosts)
    return app
