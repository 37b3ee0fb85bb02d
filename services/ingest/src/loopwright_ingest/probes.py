"""Runs the health checks of all projects. A check's state is in a KV bucket; its turn is claimed by compare-and-set, so replicas share."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime

import structlog
from loopwright_common import telemetry
from loopwright_common.bus import Bus, Conflict, Entry, KeyValue, Outgoing
from loopwright_common.clock import Clock
from loopwright_common.contracts.configuration import HealthCheck
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.errors import LoopwrightError
from loopwright_common.projects import Projects

from loopwright_ingest.gather import Gatherer
from loopwright_ingest.handlers import ITEMS
from loopwright_ingest.ports import Prober
from loopwright_ingest.sources import health
from loopwright_ingest.sources.health import ProbeState

BUCKET = "probes"
TICK_SECONDS = 0.5

log = structlog.get_logger()


class Probes:
    """One loop over all checks; each probe is a task of its own, at most ``concurrent_max`` at once."""

    def __init__(self, bus: Bus, projects: Projects, prober: Prober, gatherer: Gatherer, clock: Clock, concurrent_max: int) -> None:
        self._bus = bus
        self._projects = projects
        self._prober = prober
        self._gatherer = gatherer
        self._clock = clock
        self._slots = asyncio.Semaphore(concurrent_max)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="probes")

    async def stop(self) -> None:
        for task in [self._task, *self._running.values()]:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _run(self) -> None:
        due: dict[str, datetime] = {}
        while True:
            now = self._clock.now()
            known = set()
            for project in self._projects.all():
                for service in project.config.services:
                    for check in service.health_checks:
                        key = f"{project.config.name}.{service.name}.{check.name}"
                        known.add(key)
                        if due.get(key, now) <= now and key not in self._running:
                            due[key] = now + check.interval
                            self._begin(key, project.config.name, check.service or service.name, check)
            due = {key: at for key, at in due.items() if key in known}
            await asyncio.sleep(TICK_SECONDS)

    def _begin(self, key: str, project: str, service: str, check: HealthCheck) -> None:
        task = asyncio.create_task(self._probe_safely(key, project, service, check))
        self._running[key] = task
        task.add_done_callback(lambda _: self._running.pop(key, None))

    async def _probe_safely(self, key: str, project: str, service: str, check: HealthCheck) -> None:
        async with self._slots:
            try:
                await self.probe(key, project, service, check)
            except LoopwrightError as error:
                log.info("probe_postponed", check=check.name, project=project, reason=str(error))
            except Exception as error:
                log.error("probe_failed", check=check.name, project=project, exc_info=error)

    async def probe(self, key: str, project: str, service: str, check: HealthCheck) -> None:
        """Asks once, if no other replica has: claims the turn, asks, publishes if a signal is due, then keeps the state.

        A crash before the state is kept asks and says it again under the same identity.
        """
        bucket = await self._bus.key_value(BUCKET)
        claimed = await _claim(bucket, key, check, self._clock.now())
        if claimed is None:
            return
        state, revision = claimed
        answer = await self._prober.ask(check.url, check.timeout)
        now = self._clock.now()
        following, due = health.after(state, bool(health.verdict(check, answer)), check, now)
        if due:
            signal = health.signal_of(project, service, "", "", check, answer, following, now)
            tokens = {"project": project, "source": health.SOURCE}
            with telemetry.span("health check"):  # no request brought it: its trace begins here
                (ack,) = await self._gatherer.submit([Outgoing(SIGNALS, signal, f"signal:{project}:{signal.id}", tokens, signal.id)])
            ITEMS.labels("health_check", "duplicate" if ack.duplicate else "accepted").inc()
            log.info("health_check_failing", project=project, check=check.name, reason=health.verdict(check, answer))
        with contextlib.suppress(Conflict):  # another replica took over while this one asked: its state counts
            await bucket.update(key, following.model_dump_json().encode(), revision)


async def _claim(bucket: KeyValue, key: str, check: HealthCheck, now: datetime) -> tuple[ProbeState, int] | None:
    """Takes the turn until the next one is due. None when it is not due yet or another has it."""
    entry: Entry | None = await bucket.get(key)
    if entry is None or not entry.value:
        state, revision = ProbeState(due_at=now), None
    else:
        state, revision = ProbeState.model_validate_json(entry.value), entry.revision
    if state.due_at > now:
        return None
    claimed = state.model_copy(update={"due_at": now + check.interval * 0.9})  # a little early: the loop's own tick adds to it
    body = claimed.model_dump_json().encode()
    try:
        return claimed, await (bucket.create(key, body) if revision is None else bucket.update(key, body, revision))
    except Conflict:
        return None
