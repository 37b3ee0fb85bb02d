"""What others say of reports: the gateway's transitions, people's merges and splits, and questions that search them."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from loopwright_common.bus import Bus, Outgoing, Received
from loopwright_common.contracts.queries import GroupCommand, SearchAnswer, SearchHit, SearchQuery
from loopwright_common.contracts.reports import ReportsRegrouped, ReportTransitioned
from loopwright_common.contracts.subjects import GROUPS_REGROUPED
from loopwright_common.errors import Refused
from loopwright_common.identifiers import derived_id

from loopwright_cluster.domain import Exemplar, point_id
from loopwright_cluster.grouping.normalise import parameterise
from loopwright_cluster.handlers import BEFORE_EVERYTHING, ProjectLocks
from loopwright_cluster.ports import Embedding, VectorIndex
from loopwright_cluster.records import Records

SEARCH_FACTOR = 3  # exemplars asked for per report wanted: a report has several, and only its best counts
REINDEX_AT_ONCE = 200  # records read, embedded and stored together when the index is filled again

log = structlog.get_logger()


class Regrouping:
    """Keeps the records in step with what the gateway and people decide. ``locks`` are shared with the signals' flows."""

    def __init__(self, bus: Bus, records: Records, index: VectorIndex, locks: ProjectLocks) -> None:
        self._bus = bus
        self._records = records
        self._index = index
        self._locks = locks

    async def hear(self, batch: Sequence[Received[ReportTransitioned]]) -> None:
        """Remember how each report stands."""
        for message in batch:
            async with self._locks.of(message.payload.project):
                await self._records.transition(message.payload)

    async def obey(self, message: Received[GroupCommand]) -> None:
        """Merge or split as a person said, and publish that it is so. Raises Refused when the command makes no sense."""
        command = message.payload
        async with self._locks.of(command.project):
            fact = await (self._merge(command) if command.action == "merge" else self._split(command))
            outgoing = Outgoing(GROUPS_REGROUPED, fact, f"regroup-{command.command_id}", {"project": command.project}, about=fact.report_id)
            await self._bus.publish(outgoing)
        log.info("reports_regrouped", project=command.project, report_id=fact.report_id, action=command.action, actor=command.actor)

    async def _merge(self, command: GroupCommand) -> ReportsRegrouped:
        project, gone = command.project, command.other_report_id
        if gone is None:
            raise Refused("a merge names two reports: report_id stays, other_report_id goes")
        if gone == command.report_id:
            raise Refused(f"report {gone} cannot be merged into itself")
        stays = (await self._records.place(project, command.report_id, BEFORE_EVERYTHING, "")).report_id
        last = (await self._records.place(project, gone, BEFORE_EVERYTHING, "")).report_id
        if stays == gone:
            raise Refused(f"report {command.report_id} was already merged into {gone}; merging them the other way round would be a circle")
        if last != stays:
            await self._records.merge(project, last, stays)
        await self._index.move(project, gone, stays)
        return _regrouped(command, stays, from_report_id=gone, signal_ids=None)

    async def _split(self, command: GroupCommand) -> ReportsRegrouped:
        """Signals leave for a report of their own, and with them the fingerprints that they were the first of there."""
        if not command.signal_ids:
            raise Refused("a split names the signals that leave (signal_ids)")
        project, leaving = command.project, set(command.signal_ids)
        report_id = derived_id("split", project, command.command_id)
        # As things stand: what was merged into the report is in it. The new one counts too, for the command may come a second time.
        here = {(await self._records.place(project, command.report_id, BEFORE_EVERYTHING, "")).report_id, report_id}
        moved = []
        for owner, fingerprint in await self._records.fingerprint_keys():
            if owner != project:
                continue
            pointer = await self._records.pointer(project, fingerprint)
            if pointer is None or pointer.signal_id not in leaving:
                continue
            # Only what is in the report that is split: a signal of another one is not this command's to move.
            if (await self._records.place(project, pointer.report_id, BEFORE_EVERYTHING, "")).report_id in here:
                exemplar = await self._records.repoint(project, fingerprint, report_id)
                if exemplar is not None:
                    moved.append(exemplar)
        await self._index.assign(moved)
        return _regrouped(command, report_id, from_report_id=command.report_id, signal_ids=command.signal_ids)


def _regrouped(command: GroupCommand, report_id: str, *, from_report_id: str, signal_ids: tuple[str, ...] | None) -> ReportsRegrouped:
    return ReportsRegrouped(
        project=command.project,
        command_id=command.command_id,
        action=command.action,
        report_id=report_id,
        from_report_id=from_report_id,
        signal_ids=signal_ids,
        actor=command.actor,
        reason=command.reason,
        at=command.at,
    )


class Search:
    """Answers which reports are most like a text."""

    def __init__(self, records: Records, embedding: Embedding, index: VectorIndex) -> None:
        self._records = records
        self._embedding = embedding
        self._index = index

    async def answer(self, query: SearchQuery) -> SearchAnswer:
        """The reports nearest to the text, best first, each once, by its most similar signal."""
        (vector,) = await self._embedding.embed([parameterise(query.text)])
        best: dict[str, SearchHit] = {}
        for match in await self._index.nearest(query.project, vector, query.limit * SEARCH_FACTOR):
            exemplar = match.exemplar
            place = await self._records.place(query.project, exemplar.report_id, BEFORE_EVERYTHING, "")
            hit = SearchHit(report_id=place.report_id, similarity=match.similarity, title=exemplar.title)
            best.setdefault(place.report_id, hit)
        return SearchAnswer(hits=tuple(best.values())[: query.limit], degraded=self._embedding.degraded)


async def fill_index(records: Records, embedding: Embedding, index: VectorIndex) -> int:
    """Index what is recorded and not indexed (a lost folder, another embedding, a crash between the two); returns how many that were."""
    keys = await records.fingerprint_keys()
    filled = 0
    for start in range(0, len(keys), REINDEX_AT_ONCE):
        chunk = {point_id(*key): key for key in keys[start : start + REINDEX_AT_ONCE]}
        absent = [chunk[point] for point in sorted(await index.missing(list(chunk)))]
        found = [await records.fingerprint(*key) for key in absent]
        exemplars = []
        for record in found:
            if record is not None:
                exemplar = Exemplar.from_payload(record.exemplar)
                place = await records.place(exemplar.project, exemplar.report_id, BEFORE_EVERYTHING, "")
                exemplars.append(exemplar.in_report(place.counted))
        if exemplars:
            await index.upsert(exemplars, await embedding.embed([exemplar.text for exemplar in exemplars]))
            filled += len(exemplars)
            log.info("index_filled", points=filled, of=len(keys))
    return filled
