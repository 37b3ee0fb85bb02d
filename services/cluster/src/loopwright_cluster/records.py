"""The grouping's own records in two key-value buckets: which report each fingerprint points to, and how each report stands.

This service is their only writer; every write is a compare-and-set, so two replicas during a hand-over cannot both win. What is read once
is remembered, within a limit, and kept current by watching the buckets: a known fingerprint costs no round trip.

Conflict (a `Retryable`) comes up from here when somebody else wrote meanwhile: the batch is then decided anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import structlog
from loopwright_common.bus import Bus, Conflict, Entry, KeyValue
from loopwright_common.contracts.base import Contract, Identifier, Line, UtcDatetime
from loopwright_common.contracts.reports import (
    RESOLVED_STATES,
    DismissReason,
    GroupingDecision,
    ReportState,
    ReportTransitioned,
)

from loopwright_cluster.domain import REPORT_CHAIN_MAX, Exemplar

FINGERPRINTS_BUCKET = "cluster_fingerprints"  # <project>.<fingerprint> -> FingerprintRecord
REPORTS_BUCKET = "cluster_reports"  # <project>.<report id> -> ReportRecord
REMEMBERED_MAX = 100_000  # per bucket, about 300 bytes each; the least recently used are forgotten and read again when asked for
WATCH_RETRY_SECONDS = 1.0
READS_AT_ONCE = 32  # as many as hide the round trip
REPORT_LINE_MAX = REPORT_CHAIN_MAX  # reports that one leads to

# A person has put these away: more of the same is counted there, but nothing else may be drawn in.
QUIET_STATES = frozenset({ReportState.DISMISSED, ReportState.SUPPRESSED})

log = structlog.get_logger()
V = TypeVar("V")


class FingerprintRecord(Contract):
    """A fingerprint's report, with everything to index it again and the decision that was made when it was first seen."""

    report_id: Identifier
    signal_id: Identifier  # the signal that was first
    decision: GroupingDecision
    recurrence_of: Identifier | None = None
    decided_at: UtcDatetime
    exemplar: dict[str, Any]


class ReportRecord(Contract):
    """How a report stands, as far as grouping needs to know."""

    sequence: int = 0  # of the newest transition heard of
    state: ReportState = ReportState.GATHERING
    resolved_at: UtcDatetime | None = None  # what occurs after this is a recurrence
    merged_into: Identifier | None = None
    merged_by: Identifier | None = None  # the command; None for links of before commands were kept
    # Never opened: a model gave the text that would have opened it to this report, and the matcher goes on counting it as one of its own.
    given_to: Identifier | None = None
    successor: Identifier | None = None  # the report that was opened for the recurrence
    successor_signal: Identifier | None = None  # and the signal that opened it
    successor_reason: Line = ""
    earlier_successors: tuple[Identifier, ...] = ()  # it was reopened and resolved again since


NEW_REPORT = ReportRecord()
NO_LINKS: Mapping[str, Mapping[str, str]] = {}


def link_to(successor: str, signal_id: str, reason: str) -> dict[str, str]:
    """What a resolved report's record says of the one that follows it."""
    return {"successor": successor, "successor_signal": signal_id, "successor_reason": reason[:512]}


@dataclass(frozen=True)
class Pointer:
    """What is remembered of a fingerprint: its report and its first signal."""

    report_id: str
    signal_id: str


class _Bucket(Generic[V]):
    """A bucket seen through a bounded memory. ``read`` makes what is remembered out of a stored value; absence is remembered too.

    ``changed`` counts how often another ``gist`` was remembered of a key, or it was forgotten.
    """

    def __init__(
        self, store: KeyValue, read: Callable[[bytes], V], *, absence: bool, gist: Callable[[V | None], object] = lambda value: None
    ) -> None:
        self.store = store
        self._read = read
        self._absence = absence
        self._known: OrderedDict[str, tuple[V | None, int]] = OrderedDict()
        self._gist = gist
        self.changed = 0

    async def get(self, key: str) -> tuple[V | None, int]:
        """The value and its revision; (None, 0) when there is none."""
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        entry = await self.store.get(key)
        if entry is None or not entry.value:
            if self._absence:
                self.remember(key, None, 0)
            return None, 0
        return self.remember(key, self._read(entry.value), entry.revision)

    async def get_many(self, keys: Sequence[str]) -> dict[str, V | None]:
        """The values; None for those that have none."""
        found: dict[str, V | None] = {key: (await self.get(key))[0] for key in keys if key in self._known}
        unknown = [key for key in keys if key not in found]
        stored = await self.store.get_many(unknown) if unknown else {}
        for key in unknown:
            entry = stored.get(key)
            if entry is not None and entry.value:
                found[key] = self.remember(key, self._read(entry.value), entry.revision)[0]
            else:
                found[key] = self.remember(key, None, 0)[0] if self._absence else None
        return found

    async def create_many(self, values: Mapping[str, Contract]) -> None:
        """Create all keys. Raises Conflict when some were there, after forgetting what was known of them; the others are written."""
        data = {key: value.model_dump_json().encode() for key, value in values.items()}
        created = await self.store.create_many(data)
        for key, revision in created.items():
            self.remember(key, self._read(data[key]), revision)
        there = [key for key in data if key not in created]
        for key in there:
            self.forget(key)
        if there:
            raise Conflict(f"{len(there)} of {len(data)} keys exist, the first is {there[0]}")

    async def write(self, key: str, value: Contract, revision: int) -> None:
        """Compare-and-set: revision 0 creates. Raises Conflict, after forgetting what was known of the key."""
        data = value.model_dump_json().encode()
        try:
            new = await (self.store.update(key, data, revision) if revision else self.store.create(key, data))
        except Conflict:
            self.forget(key)
            raise
        self.remember(key, self._read(data), new)

    def remember(self, key: str, value: V | None, revision: int) -> tuple[V | None, int]:
        known = self._known.get(key)
        if known is None or known[1] <= revision:
            if self._gist(known[0] if known is not None else None) != self._gist(value):
                self.changed += 1
            self._known[key] = (value, revision)
            self._known.move_to_end(key)
            while len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)
        return self._known[key]

    def forget(self, key: str) -> None:
        self.changed += 1
        self._known.pop(key, None)

    async def follow(self, loaded: asyncio.Event) -> None:
        """Keep what is remembered current, for as long as the task lives."""
        while True:
            try:
                watching: AsyncIterator[Entry | None] = self.store.watch()
                async for entry in watching:
                    if entry is None:
                        loaded.set()
                    elif entry.value:
                        self.remember(entry.key, self._read(entry.value), entry.revision)
                    else:
                        self.forget(entry.key)
            except Exception as error:
                log.warning("record_watch_interrupted", error=str(error), retry_seconds=WATCH_RETRY_SECONDS)
            # Changes may have passed unseen.
            self.changed += 1
            self._known.clear()
            await asyncio.sleep(WATCH_RETRY_SECONDS)


@dataclass(frozen=True)
class Place:
    """Where something that points to a report belongs now.

    ``report_id`` after merges and recurrences. ``recurred`` names the resolved report when ``opener``'s signal is to open, or has
    opened, the report that follows it; ``report_id`` is then the new report, or empty when it is yet to be opened. ``always``: so it is
    for every signal, whenever it occurred. ``counted``: the report as the matcher counts it, whatever a model has given away.
    """

    report_id: str
    quiet: bool = False
    recurred: str | None = None
    reason: str = ""
    always: bool = False
    given: str = ""

    @property
    def counted(self) -> str:
        return self.given or self.recurred or self.report_id


class Records:
    """Both buckets. ``start`` begins to follow them; ``stop`` ends that."""

    def __init__(self, fingerprints: KeyValue, reports: KeyValue) -> None:
        self._fingerprints = _Bucket(fingerprints, _read_pointer, absence=False)
        self._reports = _Bucket(reports, ReportRecord.model_validate_json, absence=True, gist=_leads_to)
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, bus: Bus) -> Records:
        """The records on this bus's buckets."""
        return cls(await bus.key_value(FINGERPRINTS_BUCKET), await bus.key_value(REPORTS_BUCKET))

    async def start(self, timeout: float = 60.0) -> None:
        """Follow both buckets; returns once all that was there has been read. Raises TimeoutError."""
        loaded = [asyncio.Event(), asyncio.Event()]
        self._tasks = [
            asyncio.create_task(self._fingerprints.follow(loaded[0]), name="fingerprint records"),
            asyncio.create_task(self._reports.follow(loaded[1]), name="report records"),
        ]
        async with asyncio.timeout(timeout):
            for event in loaded:
                await event.wait()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def pointer(self, project: str, fingerprint: str) -> Pointer | None:
        """The report that a fingerprint points to, or None when it has never been seen."""
        return (await self._fingerprints.get(f"{project}.{fingerprint}"))[0]

    async def pointers(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Pointer | None]:
        """``pointer`` for many (project, fingerprint) pairs."""
        found = await self._fingerprints.get_many([f"{project}.{fingerprint}" for project, fingerprint in keys])
        return {(project, fingerprint): found[f"{project}.{fingerprint}"] for project, fingerprint in keys}

    def opened(self, project: str, report_id: str) -> None:
        """A report is opened that there was not: nothing is recorded of it, so it need not be asked for when it is next looked at."""
        self._reports.remember(f"{project}.{report_id}", None, 0)

    async def fingerprint(self, project: str, fingerprint: str) -> FingerprintRecord | None:
        """The whole record, read from the store."""
        entry = await self._fingerprints.store.get(f"{project}.{fingerprint}")
        return FingerprintRecord.model_validate_json(entry.value) if entry is not None and entry.value else None

    async def fingerprint_keys(self) -> list[tuple[str, str]]:
        """All (project, fingerprint) pairs."""
        pairs = (key.partition(".") for key in await self._fingerprints.store.keys())
        return [(project, fingerprint) for project, _, fingerprint in pairs]

    async def create(self, project: str, fingerprint: str, record: FingerprintRecord) -> None:
        """Write a fingerprint's first record. Raises Conflict when it has one."""
        await self._fingerprints.write(f"{project}.{fingerprint}", record, 0)

    async def create_many(self, records: Mapping[tuple[str, str], FingerprintRecord]) -> None:
        """``create`` for many (project, fingerprint) pairs. Raises Conflict when one has a record; the others are written."""
        if records:
            await self._fingerprints.create_many({f"{project}.{fingerprint}": record for (project, fingerprint), record in records.items()})

    async def fingerprints_of(self, project: str) -> dict[str, Pointer]:
        """A project's fingerprints and where they point."""
        prefix, slots = f"{project}.", asyncio.Semaphore(READS_AT_ONCE)

        async def read(key: str) -> tuple[str, Pointer | None]:
            async with slots:
                return key.removeprefix(prefix), (await self._fingerprints.get(key))[0]

        found = await asyncio.gather(*map(read, await self._fingerprints.store.keys(prefix)))
        return {fingerprint: pointer for fingerprint, pointer in found if pointer is not None}

    async def repoint(self, project: str, fingerprint: str, came_from: str, report_id: str, counted_in: str) -> Exemplar | None:
        """Let a fingerprint point to another report, and its exemplar count in ``counted_in``; returns the exemplar.

        None when it points to neither report. Raises Conflict.
        """
        key = f"{project}.{fingerprint}"
        entry = await self._fingerprints.store.get(key)
        if entry is None or not entry.value:
            return None
        record = FingerprintRecord.model_validate_json(entry.value)
        if record.report_id not in (came_from, report_id):
            return None
        moved = Exemplar.from_payload(record.exemplar).in_report(counted_in)
        if record.report_id != report_id:
            changed = record.model_copy(update={"report_id": report_id, "exemplar": moved.to_payload()})
            await self._fingerprints.write(key, changed, entry.revision)
        return moved

    async def place(
        self, project: str, report_id: str, occurred_at: datetime, signal_id: str, links: Mapping[str, Mapping[str, str]] = NO_LINKS
    ) -> Place:
        """Where what points to ``report_id`` belongs, for a signal that occurred then: merges and recurrences are followed.

        ``links`` are successors of resolved reports that are decided and not yet written.
        """
        current, always, given = report_id, True, ""
        followed: set[str] = set()
        resolved = report_id  # whose successor is being followed
        for _ in range(REPORT_CHAIN_MAX):
            if current in followed:  # a person has merged what followed a resolved report back into it: it goes on there
                return Place(resolved, given=given)
            followed.add(current)
            record = (await self._reports.get(f"{project}.{current}"))[0] or NEW_REPORT
            if current in links:
                record = record.model_copy(update=links[current])
            always = always and record.resolved_at is None
            if record.merged_into is not None:
                current = record.merged_into
            elif record.given_to is not None:
                given, current = given or current, record.given_to
            elif record.resolved_at is not None and occurred_at > record.resolved_at:
                if record.successor is None:
                    return Place("", recurred=current, given=given)
                if record.successor_signal == signal_id:
                    return Place(record.successor, recurred=current, reason=record.successor_reason, given=given)
                resolved, current = current, record.successor
            else:
                quiet = record.state in QUIET_STATES and record.resolved_at is None
                return Place(current, quiet=quiet, always=always, given=given)
        log.error("report_chain_too_long", project=project, report_id=report_id, followed=REPORT_CHAIN_MAX)
        return Place(current)

    async def give(self, project: str, never_opened: str, report_id: str) -> None:
        """Let what the matcher counts in a report that was never opened be in this one. Raises Conflict."""
        key = f"{project}.{never_opened}"
        record, revision = await self._reports.get(key)
        record = record or NEW_REPORT
        if record.given_to != report_id:
            await self._reports.write(key, record.model_copy(update={"given_to": report_id}), revision)

    async def open_recurrence(self, project: str, resolved: str, successor: str, signal_id: str, reason: str) -> None:
        """Record which report follows a resolved one. Raises Conflict when another already does."""
        key = f"{project}.{resolved}"
        record, revision = await self._reports.get(key)
        record = record or NEW_REPORT
        if record.successor is not None:
            if record.successor == successor:
                return
            self._reports.forget(key)
            raise Conflict(f"report {resolved} is already followed by {record.successor}")
        await self._reports.write(key, record.model_copy(update=link_to(successor, signal_id, reason)), revision)

    @property
    def links_changed(self) -> int:
        """Another number after a link was heard of: what was worked out of links is as good as it was at the same number."""
        return self._reports.changed

    async def merged(self, project: str, report_id: str) -> list[str]:
        """The report and, one after the other, those it was merged into."""
        chain = [report_id]
        while len(chain) < REPORT_CHAIN_MAX:
            record = (await self._reports.get(f"{project}.{chain[-1]}"))[0]
            if record is None or record.merged_into is None:
                break
            chain.append(record.merged_into)
        return chain

    async def line(self, project: str, report_id: str, links: Mapping[str, Mapping[str, str]] = NO_LINKS) -> frozenset[str]:
        """The report and all it leads to: what it was merged into, and what followed it after it was resolved."""
        found, left = {report_id}, [report_id]
        while left and len(found) < REPORT_LINE_MAX:
            current = left.pop()
            record = (await self._reports.get(f"{project}.{current}"))[0] or NEW_REPORT
            decided = links.get(current, {})
            for following in (*_leads_to(record), decided.get("given_to"), decided.get("successor")):
                if following is not None and following not in found:
                    found.add(following)
                    left.append(following)
        return frozenset(found)

    async def merge(self, project: str, gone: str, stays: str, by: str) -> None:
        """Let everything of report ``gone`` belong to ``stays``, by a person's command. Raises Conflict."""
        key = f"{project}.{gone}"
        record, revision = await self._reports.get(key)
        record = record or NEW_REPORT
        if record.merged_into != stays or record.merged_by != by:
            changed = {"merged_into": stays, "merged_by": by, "state": ReportState.MERGED_INTO}
            await self._reports.write(key, record.model_copy(update=changed), revision)

    async def unmerge(self, project: str, gone: str, by: str) -> None:
        """Cut the link that a command made, if it is still there. Raises Conflict."""
        key = f"{project}.{gone}"
        record, revision = await self._reports.get(key)
        if record is not None and record.merged_by == by:
            changed = {"merged_into": None, "merged_by": None, "state": ReportState.GATHERING, "resolved_at": None}
            await self._reports.write(key, record.model_copy(update=changed), revision)

    async def transition(self, heard: ReportTransitioned) -> None:
        """Take in what the gateway says of a report; older news than what is known changes nothing. Raises Conflict."""
        key = f"{heard.project}.{heard.report_id}"
        record, revision = await self._reports.get(key)
        record = record or NEW_REPORT
        if heard.sequence <= record.sequence:
            return
        changed: dict[str, Any] = {"sequence": heard.sequence, "state": heard.to_state}
        fixed = heard.to_state is ReportState.DISMISSED and heard.dismiss_reason is DismissReason.FIXED
        changed["resolved_at"] = heard.at if heard.to_state in RESOLVED_STATES or fixed else None
        if heard.from_state is ReportState.MERGED_INTO and record.merged_by is None:
            changed["merged_into"] = None  # a person took it back
        # Other links are made and cut by the commands themselves, before the gateway hears of it: its echo may come after the next one.
        if changed["resolved_at"] is not None and record.resolved_at is None and record.successor is not None:
            # It was reopened and resolved once more: the earlier recurrence is history, the next one opens its own report.
            earlier = (*record.earlier_successors, record.successor)[-REPORT_CHAIN_MAX:]
            changed |= {"successor": None, "successor_signal": None, "successor_reason": "", "earlier_successors": earlier}
        await self._reports.write(key, record.model_copy(update=changed), revision)


def _leads_to(record: ReportRecord | None) -> tuple[str | None, ...]:
    """The reports that a report's record names."""
    record = record or NEW_REPORT
    return (record.merged_into, record.given_to, record.successor, *record.earlier_successors)


def _read_pointer(value: bytes) -> Pointer:
    # json, not the model: this runs once for every fingerprint at the start, and two fields are all it is for.
    found = json.loads(value)
    return Pointer(found["report_id"], found["signal_id"])
