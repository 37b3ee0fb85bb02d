"""Projects and keys: declared by people, kept in the database, published to every service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from loopwright_common.auth import hash_token, new_sentry_key, new_token
from loopwright_common.bus import Bus
from loopwright_common.clock import Clock
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, ProjectKey, PublishedProject, Scope
from loopwright_common.errors import NotFound, Refused
from loopwright_common.identifiers import new_id
from pydantic import ValidationError

from loopwright_gateway.instants import from_instant, to_instant
from loopwright_gateway.outbox import CONFIG
from loopwright_gateway.ports import Store, Unit
from loopwright_gateway.records import OutboxItem

PROJECTS_MAX = 10_000
KEYS_MAX = 1_000
KEY_PREFIX = "project."
RETRY_SECONDS_MOST = 5.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Applied:
    """What ``apply`` did: ``outcome`` is created, updated or unchanged."""

    outcome: str
    project: PublishedProject


class Catalogue:
    """The projects, with a copy in memory for handlers that ask at every message."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._configs: dict[str, ProjectConfig] = {}
        self._revisions: dict[str, int] = {}

    async def load(self) -> None:
        """Reads all projects, and publishes each again: what was lost between database and bus comes back at the start."""
        async with self._store.transaction() as unit:
            for name, number, revision, config in await unit.projects():
                self._keep(name, revision, ProjectConfig.model_validate_json(config))
                await self._publish(unit, await self._published(unit, name, number, revision, config))

    def get(self, name: str) -> ProjectConfig | None:
        return self._configs.get(name)

    async def refresh(self, name: str) -> None:
        """Reads one project again: another replica may have changed it."""
        async with self._store.transaction() as unit:
            row = await unit.project(name)
        if row is not None:
            self._keep(name, row[1], ProjectConfig.model_validate_json(row[2]))

    async def follow(self, bus: Bus) -> None:
        """Keeps the copy current for as long as it runs: what another replica wrote is published, and read again here.

        The database decides, not what the bus carries: its message only says that there is something to read. While the bus is out of
        reach the last copy stays in force; after it, the watch begins with everything there is.
        """
        delay = 0.1
        while True:
            try:
                async for name, revision in _published_revisions(bus):
                    delay = 0.1
                    if revision > self._revisions.get(name, 0):
                        await self.refresh(name)
                        log.info("project_refreshed", project=name, revision=self._revisions.get(name, 0))
            except Exception as error:  # of the bus or of the database, whatever the driver raises
                log.warning("projects_not_followed", error=str(error)[:500], retry_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_SECONDS_MOST)

    def _keep(self, name: str, revision: int, config: ProjectConfig) -> None:
        """Two replicas may be told of the same project at once: an older revision never takes a newer one's place."""
        if revision >= self._revisions.get(name, 0):
            self._revisions[name], self._configs[name] = revision, config

    async def apply(self, config: ProjectConfig, *, dry_run: bool = False) -> Applied:
        """Makes a project what ``config`` says. Raises Refused over the limit of projects."""
        body = json.dumps(_set(config))
        async with self._store.transaction() as unit:
            known = await unit.project(config.name)
            if known is None:
                projects = await unit.projects()
                if len(projects) >= PROJECTS_MAX:
                    raise Refused(f"there are {PROJECTS_MAX} projects already")
                number, revision, outcome = max((item[1] for item in projects), default=0) + 1, 1, "created"
            else:
                number, revision, old = known
                unchanged = ProjectConfig.model_validate_json(old) == config
                outcome = "unchanged" if unchanged else "updated"
                revision += 0 if unchanged else 1
            published = await self._published(unit, config.name, number, revision, body)
            if not dry_run and outcome != "unchanged":
                await unit.save_project(config.name, number, revision, body, self._clock.now())
                await self._publish(unit, published)
        if not dry_run:
            self._keep(config.name, revision, config)
        return Applied(outcome, published)

    async def all(self) -> list[PublishedProject]:
        async with self._store.transaction() as unit:
            return [await self._published(unit, *row) for row in await unit.projects()]

    async def show(self, name: str) -> PublishedProject:
        """Raises NotFound."""
        async with self._store.transaction() as unit:
            row = await unit.project(name)
            if row is None:
                raise NotFound(f"project {name} does not exist; make it with loopwright apply -f project.yaml")
            return await self._published(unit, name, *row)

    async def create_key(self, project: str, scopes: list[Scope], label: str, service: str) -> tuple[ProjectKey, str]:
        """The key and its secret, which is told this once. Raises NotFound, Refused."""
        only_sentry = scopes == [Scope.SENTRY]
        if Scope.SENTRY in scopes and not only_sentry:
            raise Refused("a Sentry DSN's key is public: it can have no other scope than sentry:write")
        secret = new_sentry_key() if only_sentry else new_token("lwk")
        key = ProjectKey(
            id=new_id(), sha256=hash_token(secret), scopes=tuple(scopes), label=label, service=service, created_at=self._clock.now()
        )
        async with self._store.transaction() as unit:
            row = await unit.project(project)
            if row is None:
                raise NotFound(f"project {project} does not exist; make it with loopwright apply -f project.yaml")
            if len(await unit.keys(project)) >= KEYS_MAX:
                raise Refused(f"project {project} has {KEYS_MAX} keys already; revoke some")
            await unit.add_key(
                {
                    "id": key.id,
                    "project": project,
                    "sha256": key.sha256,
                    "scopes": json.dumps([scope.value for scope in scopes]),
                    "label": label,
                    "service": service,
                    "created_at": to_instant(key.created_at),
                    "revoked_at": None,
                }
            )
            await self._republish(unit, project, row)
        return key, secret

    async def revoke_key(self, project: str, key_id: str) -> None:
        """Raises NotFound."""
        async with self._store.transaction() as unit:
            row = await unit.project(project)
            if row is None or not await unit.revoke_key(project, key_id, self._clock.now()):
                raise NotFound(f"project {project} has no key {key_id} in force")
            await self._republish(unit, project, row)

    async def _republish(self, unit: Unit, name: str, row: tuple[int, int, str]) -> None:
        number, revision, config = row
        await unit.save_project(name, number, revision + 1, config, self._clock.now())
        await self._publish(unit, await self._published(unit, name, number, revision + 1, config))

    async def _published(self, unit: Unit, name: str, number: int, revision: int, config: str) -> PublishedProject:
        keys = tuple(_key(row) for row in await unit.keys(name))
        return PublishedProject(number=number, revision=revision, config=ProjectConfig.model_validate_json(config), keys=keys)

    async def _publish(self, unit: Unit, project: PublishedProject) -> None:
        key = f"{KEY_PREFIX}{project.config.name}"
        payload = project.model_dump(mode="json") | {"config": _set(project.config)}
        await unit.enqueue(OutboxItem(CONFIG, {}, f"{key}:{project.revision}", key, json.dumps(payload)))


def _set(config: ProjectConfig) -> dict[str, Any]:
    """The configuration as it is kept and published: only what differs from the defaults.

    A service of the release before refuses a setting that it does not know. So that it goes on while an upgrade rolls, and after a
    rollback, a new setting is there only once a project uses it.
    """
    return config.model_dump(mode="json", exclude_defaults=True)


async def _published_revisions(bus: Bus) -> AsyncIterator[tuple[str, int]]:
    """(name, revision) of each project that is published, and of each that comes to be."""
    bucket = await bus.key_value(CONFIG_BUCKET)
    async for entry in bucket.watch(KEY_PREFIX):
        if entry is None or not entry.value:
            continue
        try:
            yield entry.key.removeprefix(KEY_PREFIX), PublishedProject.model_validate_json(entry.value).revision
        except ValidationError as error:
            log.error("config_unreadable", key=entry.key, error=str(error))


def _key(row: dict[str, Any]) -> ProjectKey:
    revoked: datetime | None = from_instant(row["revoked_at"]) if row["revoked_at"] is not None else None
    return ProjectKey(
        id=row["id"], sha256=row["sha256"], scopes=tuple(Scope(scope) for scope in json.loads(row["scopes"])), label=row["label"],
        service=row["service"], created_at=from_instant(row["created_at"]), revoked_at=revoked,
    )  # fmt: skip
