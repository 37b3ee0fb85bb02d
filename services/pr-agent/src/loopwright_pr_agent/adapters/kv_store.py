"""The records of changes in a JetStream key-value bucket: every write a compare-and-set."""

from __future__ import annotations

import structlog
from loopwright_common.bus import Bus, Entry, KeyValue
from loopwright_common.contracts.investigations import Investigation
from loopwright_common.errors import NotFound
from pydantic import ValidationError

from loopwright_pr_agent.domain import Progress
from loopwright_pr_agent.ports import Kept

BUCKET = "pr-agent"
CHANGES, INVESTIGATIONS = "change", "investigation"
FINISHED = frozenset({"merged", "closed", "failed"})

log = structlog.get_logger()


class KeyValueProgress:
    """The ProgressStore over a bucket of this service alone."""

    def __init__(self, bucket: KeyValue) -> None:
        self._bucket = bucket
        self._finished: set[str] = set()  # keys that need no reading again: nothing leaves these phases

    @classmethod
    async def open(cls, bus: Bus) -> KeyValueProgress:
        """Opens the bucket, making it when it is not there."""
        return cls(await bus.key_value(BUCKET))

    async def get(self, project: str, change_id: str) -> Kept | None:
        entry = await self._bucket.get(f"{CHANGES}.{project}.{change_id}")
        return _read(entry) if entry is not None else None

    async def create(self, progress: Progress, investigation: Investigation) -> Kept:
        key = f"{progress.project}.{progress.change_id}"
        # First: a record without its investigation could never be told as merged.
        await self._bucket.put(f"{INVESTIGATIONS}.{key}", investigation.model_dump_json().encode())
        return Kept(progress, await self._bucket.create(f"{CHANGES}.{key}", progress.model_dump_json().encode()))

    async def update(self, kept: Kept, progress: Progress) -> Kept:
        key = f"{CHANGES}.{progress.project}.{progress.change_id}"
        return Kept(progress, await self._bucket.update(key, progress.model_dump_json().encode(), kept.revision))

    async def investigation(self, project: str, change_id: str) -> Investigation:
        entry = await self._bucket.get(f"{INVESTIGATIONS}.{project}.{change_id}")
        if entry is None:
            raise NotFound(f"the investigation behind change {change_id} is not in the bucket {BUCKET}")
        return Investigation.model_validate_json(entry.value)

    async def in_review(self) -> list[Kept]:
        found = []
        for key in await self._bucket.keys(f"{CHANGES}."):
            if key in self._finished:
                continue
            entry = await self._bucket.get(key)
            try:
                kept = _read(entry) if entry is not None else None
            except ValidationError as error:
                log.error("change_record_unreadable", key=key, error=str(error)[:500])
                continue
            if kept is None:
                continue
            if kept.progress.phase in FINISHED:
                self._finished.add(key)
            elif kept.progress.phase == "in_review":
                found.append(kept)
        return found


def _read(entry: Entry) -> Kept:
    return Kept(Progress.model_validate_json(entry.value), entry.revision)
