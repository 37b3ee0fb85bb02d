"""The templates of log lines, kept in a key-value bucket: after a restart, or on another replica, a line gets the fingerprint it had.

Before anything decided by them is told, ``save`` writes what changed (a template changes a few times in its life, as values show, and once
a day that it is in use). Two replicas during a hand-over may both write one: what they know is joined, so nobody has to give way.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from loopwright_common.bus import Bus, Conflict, KeyValue

from loopwright_cluster.grouping.logs import Change, Templates

TEMPLATES_BUCKET = "cluster_templates"  # <project>.<place>.<template> -> its words
WRITES_AT_ONCE = 32
ATTEMPTS_MAX = 8  # each lost race means that somebody else stored something; then the batch is handed in again
WATCH_RETRY_SECONDS = 1.0

log = structlog.get_logger()


class TemplateRecords:
    """``templates`` is what to fingerprint with. ``start`` loads and follows the bucket, ``stop`` ends that."""

    def __init__(self, store: KeyValue, templates: Templates | None = None) -> None:
        self.templates = templates if templates is not None else Templates()
        self._store = store
        self._revisions: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, bus: Bus) -> TemplateRecords:
        """The templates on this bus's bucket."""
        return cls(await bus.key_value(TEMPLATES_BUCKET))

    async def start(self, timeout: float = 60.0) -> None:
        """Follow the bucket; returns once all that was there has been read. Raises TimeoutError."""
        loaded = asyncio.Event()
        self._task = asyncio.create_task(self._follow(loaded), name="template records")
        async with asyncio.timeout(timeout):
            await loaded.wait()

    async def stop(self) -> None:
        """Follow it no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def save(self, project: str | None = None) -> None:
        """Store what changed, of one project or of all; durable when it returns. Raises Conflict when others write again and again."""
        changes = self.templates.unsaved(project)
        if not changes:
            return
        slots = asyncio.Semaphore(WRITES_AT_ONCE)

        async def write(change: Change) -> None:
            async with slots:
                await self._write(*change)

        results = await asyncio.gather(*(write(change) for change in changes), return_exceptions=True)
        for result in results:  # all are over before the first failure goes up
            if isinstance(result, BaseException):
                raise result

    async def _write(self, key: str, value: bytes | None) -> None:
        for _ in range(ATTEMPTS_MAX):
            if value is None:
                await self._store.delete(key)
                self._revisions.pop(key, None)
                self.templates.saved([(key, value)])
                return
            revision = self._revisions.get(key, 0)
            try:
                self._revisions[key] = await (self._store.update(key, value, revision) if revision else self._store.create(key, value))
            except Conflict:
                entry = await self._store.get(key)
                if entry is None or not entry.value:
                    self._revisions.pop(key, None)  # another replica let it go; it is in use here
                    continue
                self._load(entry.key, entry.value, entry.revision)
                joined = dict(self.templates.unsaved(key.partition(".")[0])).get(key, entry.value)
                if joined == entry.value:
                    self.templates.saved([(key, joined)])
                    return
                value = joined
            else:
                self.templates.saved([(key, value)])
                return
        raise Conflict(f"the template {key} was written by others {ATTEMPTS_MAX} times in a row")

    def _load(self, key: str, value: bytes | None, revision: int) -> None:
        if revision <= self._revisions.get(key, 0):
            return  # our own writing coming back
        try:
            self.templates.load(key, value or None)
        except (ValueError, KeyError, TypeError) as error:
            log.error("template_unreadable", key=key, error=str(error), remedy="it is left out; delete the key to be rid of it")
        if value:
            self._revisions[key] = revision
        else:
            self._revisions.pop(key, None)

    async def _follow(self, loaded: asyncio.Event) -> None:
        while True:
            try:
                async for entry in self._store.watch():
                    if entry is None:
                        loaded.set()
                    else:
                        self._load(entry.key, entry.value, entry.revision)
            except Exception as error:
                log.warning("template_watch_interrupted", error=str(error), retry_seconds=WATCH_RETRY_SECONDS)
            await asyncio.sleep(WATCH_RETRY_SECONDS)
