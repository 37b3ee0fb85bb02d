"""Pending measurements and recent deploys in JetStream key-value buckets: every write a compare-and-set."""

from __future__ import annotations

from datetime import datetime

import structlog
from loopwright_common.bus import Bus, Conflict, Entry, KeyValue
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.signals import Deploy
from loopwright_common.errors import Retryable
from pydantic import Field, ValidationError

from loopwright_measure.domain import DEPLOYS_REMEMBERED_MAX, Pending
from loopwright_measure.ports import Kept

BUCKET = "measure"
PENDING, DEPLOYS = "pending", "deploys"
ATTEMPTS_MAX = 10  # writers are a handful; more conflicts in a row mean that something else is wrong

log = structlog.get_logger()


class _Deploys(Contract):
    deploys: tuple[Deploy, ...] = Field(default=(), max_length=DEPLOYS_REMEMBERED_MAX)


class KeyValueStore:
    """The PendingStore over a bucket of this service alone."""

    def __init__(self, bucket: KeyValue) -> None:
        self._bucket = bucket

    @classmethod
    async def open(cls, bus: Bus) -> KeyValueStore:
        """Opens the bucket, making it when it is not there."""
        return cls(await bus.key_value(BUCKET))

    async def get(self, project: str, change_id: str) -> Kept | None:
        entry = await self._bucket.get(_key(project, change_id))
        return _read(entry) if entry is not None else None

    async def create(self, pending: Pending) -> Kept:
        revision = await self._bucket.create(_key(pending.project, pending.change_id), pending.model_dump_json().encode())
        return Kept(pending, revision)

    async def update(self, kept: Kept, pending: Pending) -> Kept:
        if pending == kept.pending:
            return kept
        key = _key(pending.project, pending.change_id)
        return Kept(pending, await self._bucket.update(key, pending.model_dump_json().encode(), kept.revision))

    async def of_project(self, project: str) -> list[Kept]:
        return [kept for kept in await self._read_all(f"{PENDING}.{project}.") if kept.pending.phase != "done"]

    async def all(self) -> list[Kept]:
        return await self._read_all(f"{PENDING}.")

    async def forget_done(self, before: datetime) -> int:
        forgotten = 0
        for kept in await self.all():
            if kept.pending.done_at is not None and kept.pending.done_at < before:
                await self._bucket.delete(_key(kept.pending.project, kept.pending.change_id))
                forgotten += 1
        return forgotten

    async def remember_deploy(self, deploy: Deploy) -> None:
        key = f"{DEPLOYS}.{deploy.project}"
        for _ in range(ATTEMPTS_MAX):
            entry = await self._bucket.get(key)
            known = _Deploys.model_validate_json(entry.value).deploys if entry is not None else ()
            if any(each.id == deploy.id for each in known):
                return
            newest = sorted((*known, deploy), key=lambda each: (each.deployed_at, each.id))[-DEPLOYS_REMEMBERED_MAX:]
            value = _Deploys(deploys=tuple(newest)).model_dump_json().encode()
            try:
                if entry is None:
                    await self._bucket.create(key, value)
                else:
                    await self._bucket.update(key, value, entry.revision)
            except Conflict:
                continue
            return
        raise Retryable(f"the deploys of {deploy.project} kept changing")

    async def deploys(self, project: str) -> list[Deploy]:
        entry = await self._bucket.get(f"{DEPLOYS}.{project}")
        return list(_Deploys.model_validate_json(entry.value).deploys) if entry is not None else []

    async def _read_all(self, prefix: str) -> list[Kept]:
        found = []
        for key in await self._bucket.keys(prefix):
            entry = await self._bucket.get(key)
            if entry is None or not entry.value:
                continue
            try:
                found.append(_read(entry))
            except ValidationError as error:
                # One record that an older or newer version wrote must not stop the others.
                log.error("pending_measurement_unreadable", key=key, error=str(error)[:500])
        return found


def _key(project: str, change_id: str) -> str:
    return f"{PENDING}.{project}.{change_id}"


def _read(entry: Entry) -> Kept:
    return Kept(Pending.model_validate_json(entry.value), entry.revision)
