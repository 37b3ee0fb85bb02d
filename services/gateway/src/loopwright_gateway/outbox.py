"""Sends what transactions left to be sent. A crash before it is forgotten sends it again, under the same message id."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import structlog
from loopwright_common import telemetry
from loopwright_common.bus import Bus, Outgoing, Timer
from loopwright_common.contracts.configuration import CONFIG_BUCKET, PublishedProject
from loopwright_common.contracts.subjects import SUBJECTS
from loopwright_common.errors import LoopwrightError, Permanent
from loopwright_common.identifiers import derived_id

from loopwright_gateway.life import TIMER, note
from loopwright_gateway.ports import Store
from loopwright_gateway.records import OutboxItem

CONFIG = "config"
BATCH = 200
IDLE_SECONDS = 0.5  # another replica's transactions are found within this time; our own wake us at once
RETRY_SECONDS_MOST = 5.0
BY_PATTERN = {subject.pattern: subject for subject in SUBJECTS}

log = structlog.get_logger()


class Dispatcher:
    """Sends in the order in which transactions stood."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self._store = store
        self._bus = bus
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="outbox")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    async def _run(self) -> None:
        delay = 0.1
        while True:
            self._wake.clear()
            try:
                sent = await self.send_some()
            except LoopwrightError as error:
                log.warning("outbox_waits", error=str(error), retry_seconds=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_SECONDS_MOST)
                continue
            except Exception as error:
                log.error("outbox_failed", exc_info=error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_SECONDS_MOST)
                continue
            delay = 0.1
            if sent < BATCH:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), IDLE_SECONDS)

    async def send_some(self) -> int:
        """Sends up to a batch and forgets it; how much that was. Raises BusUnavailable."""
        items = await self._store.outbox(BATCH)
        if not items:
            return 0
        messages: list[Outgoing] = []
        for item in items:
            if item.kind in BY_PATTERN:
                messages.append(_outgoing(item))
                continue
            await self._publish(messages)
            messages = []
            if item.kind == TIMER:
                with telemetry.continued(item.traceparent):
                    await self._bus.schedule(Timer.model_validate_json(item.payload))
            elif item.kind == CONFIG:
                await self._publish_project(item)
        await self._publish(messages)
        await self._store.sent([item.id for item in items])
        return len(items)

    async def _publish(self, messages: list[Outgoing]) -> None:
        if not messages:
            return
        try:
            await self._bus.publish_batch(messages)
        except Permanent:
            for message in messages:
                try:
                    await self._bus.publish(message)
                except Permanent as error:
                    await self._give_up(message, error)

    async def _give_up(self, message: Outgoing, error: Permanent) -> None:
        """What no server will take must not hold up what is behind it; the report it is about says so."""
        log.error("outbox_refused", subject=message.subject.pattern, about=message.about, error=str(error))
        async with self._store.transaction() as unit:
            change = await unit.change(message.about)
            report = await unit.report(change.report_id if change is not None else message.about)
            if report is not None:
                reason = f"{message.subject.pattern} could not be sent: {error}"
                cause = derived_id("not_published", message.message_id)
                await note(unit, report, "not_published", "service:gateway", reason, datetime.now(UTC), cause)

    async def _publish_project(self, item: OutboxItem) -> None:
        """Puts a project's configuration where every service watches it, unless a newer revision is there."""
        bucket = await self._bus.key_value(CONFIG_BUCKET)
        present = await bucket.get(item.about)
        published = PublishedProject.model_validate_json(item.payload)
        if present is None or not present.value:
            await bucket.put(item.about, item.payload.encode())
        elif PublishedProject.model_validate_json(present.value).revision <= published.revision:
            await bucket.update(item.about, item.payload.encode(), present.revision)


def _outgoing(item: OutboxItem) -> Outgoing:
    subject = BY_PATTERN[item.kind]
    payload = subject.payload.model_validate_json(item.payload)
    return Outgoing(subject, payload, item.message_id, item.tokens, item.about, item.traceparent)
