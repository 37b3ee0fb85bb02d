"""The composition root: which store, which history, which counts, and who handles what."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from fastapi import FastAPI
from loopwright_common.bus import Bus, ConsumerSpec
from loopwright_common.clock import Clock, SystemClock
from loopwright_common.contracts.subjects import CHANGES_MERGED, DEPLOYS
from loopwright_common.nats_bus import NatsBus, open_bus
from loopwright_common.process import service_app
from loopwright_common.projects import Projects
from loopwright_repositories.forges.local import LocalForge

from loopwright_measure import api
from loopwright_measure.adapters.gateway_rates import GatewayRates
from loopwright_measure.adapters.git_history import GitHistory
from loopwright_measure.adapters.kv_store import KeyValueStore
from loopwright_measure.handlers import SERVICE, Measuring
from loopwright_measure.ports import History
from loopwright_measure.settings import MeasureSettings

# Many tries: a forge that is away for an hour must not cost a verdict.
ATTEMPTS_MAX = 100
WATCH_EVERY = timedelta(seconds=15)  # as often as Prometheus asks
ACK_WAIT = timedelta(seconds=60)  # a first fetch of a large repository takes minutes; heartbeats go on meanwhile


class Service:
    """The running parts. ``start`` returns when merges and deploys are being handled; ``stop`` drains."""

    def __init__(self, bus: Bus, history: History, clock: Clock) -> None:
        self._bus = bus
        self._history = history
        self._clock = clock
        self._projects = Projects(bus)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> KeyValueStore:
        """Begins to measure; gives the store, for the API."""
        store = await KeyValueStore.open(self._bus)
        await self._projects.start()
        # Which service lives in which repository decides whose deploys count.
        await self._projects.wait_loaded()
        measuring = Measuring(self._bus, store, self._history, GatewayRates(self._bus), self._projects, self._clock)
        await measuring.resume()
        self._watching = asyncio.create_task(keep_watching(measuring), name="watch")
        await self._bus.on_timer(SERVICE, measuring.due)
        await self._bus.consume(
            ConsumerSpec("measure-merges", SERVICE, (CHANGES_MERGED,), attempts_max=ATTEMPTS_MAX, ack_wait=ACK_WAIT), measuring.merged
        )
        await self._bus.consume(
            ConsumerSpec("measure-deploys", SERVICE, (DEPLOYS,), attempts_max=ATTEMPTS_MAX, ack_wait=ACK_WAIT), measuring.deployed
        )
        return store

    async def stop(self, drain: timedelta) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._bus.close(drain)
        await self._projects.stop()


async def keep_watching(measuring: Measuring) -> None:
    """Reads what is pending until cancelled."""
    while True:
        await measuring.look_at_pending()
        await asyncio.sleep(WATCH_EVERY.total_seconds())


def create_app(settings: MeasureSettings) -> FastAPI:
    """The service's app; its parts live as long as the app's lifespan."""
    running: dict[str, NatsBus] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            bus = await open_bus(settings, SERVICE)
            token = settings.forge_token if settings.forge_token.get_secret_value() else None
            forge = await stack.enter_async_context(LocalForge(settings.forge_url, token))
            history = GitHistory(settings.checkouts_dir, forge)
            service = Service(bus, history, SystemClock())
            stack.push_async_callback(service.stop, timedelta(seconds=settings.drain_seconds))
            app.include_router(api.router(await service.start()))
            running["bus"] = bus
            yield
            running.clear()

    async def readiness() -> Mapping[str, str]:
        bus = running.get("bus")
        if bus is None:
            return {"start": "the service is starting"}
        return {"bus": "" if await bus.ready() else f"no answer from {settings.nats_url}"}

    return service_app(SERVICE, "Loopwright measure", lifespan, readiness)
