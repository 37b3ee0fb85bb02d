"""What was compared, kept in a key-value bucket: over restarts, and whichever replica is asked.

A project has one writer at a time, the replica that has its flow; during a hand-over both add to what is there. What was compared of a
batch is stored after its facts: what a crash in between loses is not compared again, as its decisions are recorded by then. What cannot be
stored is left out and logged: no signal waits for a comparison.
"""

from __future__ import annotations

import structlog
from loopwright_common.bus import Bus, BusUnavailable, Conflict, Entry, KeyValue, MessageTooLarge
from loopwright_common.clock import Clock
from loopwright_common.contracts.base import Contract, Line, UtcDatetime
from loopwright_common.contracts.queries import ShadowDifference
from pydantic import ValidationError

from loopwright_cluster.comparison import DIFFERENCES_MAX, Compared, Difference

SHADOW_BUCKET = "cluster_shadow"  # <project> -> Kept
ATTEMPTS_MAX = 8
# Characters of up to four bytes: a hundred differences are half a megabyte at the very most, and the bus takes one.
TITLE_MAX = 200
REASON_MAX = 500

log = structlog.get_logger()


class Kept(Contract):
    """A project's comparison of two versions since ``since``. ``differences``: the newest, newest first; reports as they were decided."""

    version: Line
    shadow: Line
    since: UtcDatetime
    agreed: int = 0
    differed: int = 0
    differences: tuple[ShadowDifference, ...] = ()

    def plus(self, compared: Compared) -> Kept:
        """With what was compared since."""
        newest = {item.signal_id: item for item in (*map(_told, reversed(compared.differences)), *reversed(self.differences))}
        ordered = sorted(newest.values(), key=lambda item: item.at, reverse=True)
        return self.model_copy(
            update={
                "agreed": self.agreed + compared.agreed,
                "differed": self.differed + compared.differed,
                "differences": tuple(ordered[:DIFFERENCES_MAX]),
            }
        )


class ComparisonRecords:
    """What ``version`` and ``shadow`` were compared in. Other versions begin anew."""

    def __init__(self, store: KeyValue, clock: Clock, version: str, shadow: str) -> None:
        self._store = store
        self._clock = clock
        self._version, self._shadow = version, shadow

    @classmethod
    async def open(cls, bus: Bus, clock: Clock, version: str, shadow: str) -> ComparisonRecords:
        """On this bus's bucket."""
        return cls(await bus.key_value(SHADOW_BUCKET), clock, version, shadow)

    async def of(self, project: str) -> Kept:
        """What is stored of a project."""
        return self._read(project, await self._store.get(project))

    async def add(self, project: str, compared: Compared) -> None:
        """Store what was compared; never raises."""
        if not compared:
            return
        try:
            for _ in range(ATTEMPTS_MAX):
                entry = await self._store.get(project)
                value = self._read(project, entry).plus(compared).model_dump_json().encode()
                try:
                    await (self._store.create(project, value) if entry is None else self._store.update(project, value, entry.revision))
                except Conflict:
                    continue
                return
            error = f"written by others {ATTEMPTS_MAX} times in a row"
        except (BusUnavailable, MessageTooLarge) as refused:
            error = str(refused)
        log.warning("grouping_comparison_lost", project=project, agreed=compared.agreed, differed=compared.differed, error=error)

    def _read(self, project: str, entry: Entry | None) -> Kept:
        fresh = Kept(version=self._version, shadow=self._shadow, since=self._clock.now())
        if entry is None or not entry.value:
            return fresh
        try:
            kept = Kept.model_validate_json(entry.value)
        except ValidationError as error:
            log.error("grouping_comparison_unreadable", project=project, errors=error.error_count(), remedy="it begins anew")
            return fresh
        return kept if (kept.version, kept.shadow) == (self._version, self._shadow) else fresh


def _told(item: Difference) -> ShadowDifference:
    return ShadowDifference(
        signal_id=item.newcomer.signal_id,
        title=item.newcomer.title[:TITLE_MAX],
        report_id=item.decided.report_id,
        reason=item.decided.reason[:REASON_MAX],
        shadow_report_id=item.shadow.report_id,
        shadow_reason=item.shadow.reason[:REASON_MAX],
        at=item.at,
    )
