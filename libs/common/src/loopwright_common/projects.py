"""The projects' configuration as a service sees it: kept current from the ``config`` bucket, which the gateway writes."""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from pydantic import ValidationError

from loopwright_common.bus import Bus
from loopwright_common.contracts.configuration import CONFIG_BUCKET, PublishedProject

KEY_PREFIX = "project."
RETRY_SECONDS_MOST = 5.0

log = structlog.get_logger()


class Projects:
    """A live copy of all projects. ``loaded`` is False until everything that was there at the start has been read."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._projects: dict[str, PublishedProject] = {}
        self._by_number: dict[int, str] = {}
        self._by_key: dict[str, tuple[str, str]] = {}
        self._loaded = asyncio.Event()
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to follow the bucket; returns at once. Reconnects by itself."""
        self._task = asyncio.create_task(self._follow(), name="projects")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def loaded(self) -> bool:
        return self._loaded.is_set()

    async def wait_loaded(self, timeout: float = 30.0) -> None:
        """Returns once everything present was read. Raises TimeoutError."""
        await asyncio.wait_for(self._loaded.wait(), timeout)

    async def wait_changed(self) -> None:
        """Returns at the next change of any project: for a service that keeps something per project."""
        async with self._changed:
            await self._changed.wait()

    def all(self) -> list[PublishedProject]:
        return list(self._projects.values())

    def get(self, name: str) -> PublishedProject | None:
        return self._projects.get(name)

    def by_number(self, number: int) -> PublishedProject | None:
        """The project that a Sentry DSN names."""
        name = self._by_number.get(number)
        return self._projects.get(name) if name is not None else None

    def by_key(self, sha256: str) -> tuple[PublishedProject, str] | None:
        """The project and the key's id for a key's hash; revoked keys are not found."""
        found = self._by_key.get(sha256)
        return (self._projects[found[0]], found[1]) if found is not None else None

    async def _follow(self) -> None:
        delay = 0.1
        while True:
            try:
                bucket = await self._bus.key_value(CONFIG_BUCKET)
                async for entry in bucket.watch(KEY_PREFIX):
                    delay = 0.1
                    if entry is None:
                        self._loaded.set()
                    else:
                        self._take(entry.key, entry.value)
                    async with self._changed:
                        self._changed.notify_all()
            except Exception as error:
                # The last known configuration stays in force: keys that were revoked meanwhile are refused once the bus is back.
                log.warning("config_watch_interrupted", error=str(error), retry_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_SECONDS_MOST)

    def _take(self, key: str, value: bytes) -> None:
        name = key.removeprefix(KEY_PREFIX)
        if not value:
            self._projects.pop(name, None)
        else:
            try:
                self._projects[name] = PublishedProject.model_validate_json(value)
            except ValidationError as error:
                log.error("config_unreadable", project=name, error=str(error))
                return
        self._by_number = {project.number: project.config.name for project in self._projects.values()}
        self._by_key = {
            item.sha256: (project.config.name, item.id)
            for project in self._projects.values()
            for item in project.keys
            if item.revoked_at is None
        }
