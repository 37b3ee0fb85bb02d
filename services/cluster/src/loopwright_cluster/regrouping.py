"""What others say of reports: the gateway's transitions, people's words on the grouping, and questions that search them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog
from loopwright_common.bus import Bus, Outgoing, Received
from loopwright_common.clock import Clock
from loopwright_common.contracts.queries import GroupCommand, SearchAnswer, SearchHit, SearchQuery
from loopwright_common.contracts.reports import FINGERPRINTS_PER_FACT_MAX, ReportsRegrouped, ReportTransitioned
from loopwright_common.contracts.signals import SignalKind
from loopwright_common.contracts.subjects import GROUPS_REGROUPED
from loopwright_common.errors import Refused
from loopwright_common.identifiers import derived_id
from prometheus_client import Counter

from loopwright_cluster.constraints import Word as Said
from loopwright_cluster.domain import Exemplar, Match, point_id
from loopwright_cluster.grouping.describe import as_written
from loopwright_cluster.grouping.normalise import parameterise
from loopwright_cluster.grouping.v1 import HUMAN_KINDS
from loopwright_cluster.handlers import BEFORE_EVERYTHING, ProjectLocks
from loopwright_cluster.ports import Embedding, Near, VectorIndex, Where
from loopwright_cluster.records import READS_AT_ONCE, Records
from loopwright_cluster.word_records import Moved, WordRecord, Words

SEARCH_FACTOR = 3  # exemplars asked for per report wanted: a report has several, and only its best counts
PEOPLES_KINDS = tuple(sorted(HUMAN_KINDS))
MACHINES_KINDS = tuple(kind.value for kind in SignalKind if kind.value not in HUMAN_KINDS)
REINDEX_AT_ONCE = 200  # records read, embedded and stored together when the index is filled again

REGROUPED = Counter("loopwright_cluster_words", "What people said of the grouping.", ["action", "outcome"])
# Another replica, which groups the project's signals, hears of a word by watching: until then it tells of them where they were.
HEARD_WITHIN = timedelta(seconds=1)

log = structlog.get_logger()


class Regrouping:
    """Keeps the records in step with what the gateway and people decide. ``locks`` are shared with the signals' flows.

    A command is planned and recorded before anything is done by it; what it does can be done again; then it is recorded as done, and told
    of. So a command that comes again, after a crash at any step too, does the rest of what was planned and says the same.
    """

    def __init__(self, bus: Bus, records: Records, words: Words, index: VectorIndex, locks: ProjectLocks, clock: Clock) -> None:
        self._bus = bus
        self._records = records
        self._words = words
        self._index = index
        self._locks = locks
        self._clock = clock

    async def hear(self, batch: Sequence[Received[ReportTransitioned]]) -> None:
        """Remember how each report stands."""
        for message in batch:
            async with self._locks.of(message.payload.project):
                await self._records.transition(message.payload)

    async def obey(self, message: Received[GroupCommand]) -> None:
        """Do what a person said, or refuse it, and publish which. Raises Conflict when another replica wrote meanwhile."""
        command = message.payload
        async with self._locks.of(command.project):
            word, revision = await self._words.read(command.project, command.command_id)
            if word is None:
                word = await self._planned(command)
                revision = await self._words.write(word, 0)
            if word.done_at is None:
                word = await self._finish(word, revision)
            fact = _fact(command, word)
            outgoing = Outgoing(GROUPS_REGROUPED, fact, f"regroup-{command.command_id}", {"project": command.project}, about=fact.report_id)
            await self._bus.publish(outgoing)
        REGROUPED.labels(command.action, "refused" if word.refused else "done").inc()
        log.info(
            "reports_regrouped", project=command.project, report_id=fact.report_id, action=command.action, actor=command.actor,
            refused=word.refused,
        )  # fmt: skip

    async def _planned(self, command: GroupCommand) -> WordRecord:
        """What the command is going to do; done at once where it is refused."""
        try:
            if command.action == "merge":
                return await self._merge(command)
            if command.action in ("split", "move"):
                return await self._take_out(command)
            if command.action == "never_together":
                return await self._never_together(command)
            return await self._undo(command)
        except Refused as refusal:
            other = command.other_report_id or command.report_id
            return _word(command, other, command.report_id, refused=str(refusal)[:2_048], done_at=self._clock.now())

    async def _merge(self, command: GroupCommand) -> WordRecord:
        project, named = command.project, _other(command)
        if named == command.report_id:
            raise Refused(f"report {named} cannot be merged into itself")
        stays, gone = await self._now(project, command.report_id), await self._now(project, named)
        if stays == gone:
            raise Refused(f"reports {command.report_id} and {named} are one already, {stays}; merging them would be a circle")
        against = await self._never(project, stays, gone)
        if against is not None:
            raise Refused(f"{against.said}: undo that first, then merge {gone} into {stays}")
        return _word(command, gone, stays)

    async def _take_out(self, command: GroupCommand) -> WordRecord:
        if not command.fingerprints and not command.signal_ids:
            raise Refused(f"a {command.action} names what leaves: fingerprints, signal_ids or both")
        project = command.project
        source = await self._now(project, command.report_id)
        if command.action == "move":
            target = await self._now(project, _other(command))
            if target == source:
                raise Refused(f"reports {command.report_id} and {command.other_report_id} are one, {source}: nothing to move within it")
        else:
            target = derived_id("split", project, command.command_id)
        moved: dict[str, Moved] = {}
        for fingerprint in dict.fromkeys(command.fingerprints):
            record = await self._records.fingerprint(project, fingerprint)
            if record is not None and await self._now(project, record.report_id) == source:
                counted_in = Exemplar.from_payload(record.exemplar).report_id
                moved[fingerprint] = Moved(came_from=record.report_id, goes_to=target, was_counted_in=counted_in, is_counted_in=target)
        elsewhere = len(set(command.fingerprints)) - len(moved)
        if not moved and not command.signal_ids:
            raise Refused(f"none of the {elsewhere} fingerprints named is in report {command.report_id}")
        left_out = f"{elsewhere} of the fingerprints named are not in report {command.report_id} and stay" if elsewhere else ""
        reason = "; ".join(part for part in (command.reason, left_out) if part)[:2_048]
        return _word(command, source, target, moved=moved, reason=reason)

    async def _never_together(self, command: GroupCommand) -> WordRecord:
        project, other = command.project, _other(command)
        if other == command.report_id:
            raise Refused(f"never_together names two reports, and both are {other}")
        one_now, other_now = await self._now(project, command.report_id), await self._now(project, other)
        if one_now == other_now:
            raise Refused(f"reports {command.report_id} and {other} are one by a merge, {one_now}: split it, or undo the merge first")
        lines = [await self._records.line(project, report_id) for report_id in (command.report_id, other)]
        if not lines[0].isdisjoint(lines[1]):
            raise Refused(f"one of the reports {command.report_id} and {other} follows the other, which was resolved: they are one problem")
        return _word(command, other, command.report_id)

    async def _undo(self, command: GroupCommand) -> WordRecord:
        project = command.project
        if command.undoes is None:
            raise Refused("an undo names the command that it takes back (undoes)")
        word, _ = await self._words.read(project, command.undoes)
        if word is None:
            raise Refused(f"command {command.undoes} is not known here: only a word that was kept can be taken back")
        if word.refused:
            raise Refused(f"command {command.undoes} was refused, so there is nothing to take back")
        if word.action == "undo":
            raise Refused(f"command {command.undoes} is itself an undo; say again what it took back")
        if word.undone_by is not None:
            raise Refused(f"command {command.undoes} was taken back already, by command {word.undone_by}")
        if word.action == "merge":
            return await self._unmerge(command, word)
        if word.action == "never_together":
            return _word(command, word.source, word.target)
        returns, there = await self._now(project, word.source), await self._now(project, word.target)
        moved: dict[str, Moved] = {}
        for fingerprint, was in word.moved.items():
            pointer = await self._records.pointer(project, fingerprint)
            if pointer is not None and pointer.report_id == was.goes_to and not self._moved_later(word, fingerprint):
                # Where its report was a part of the one that was left and no longer is, all go to one place: so the fact can say which.
                same = await self._now(project, was.came_from) == returns
                home, counted_in = (was.came_from, was.was_counted_in) if same else (returns, returns)
                moved[fingerprint] = Moved(came_from=was.goes_to, goes_to=home, was_counted_in=was.is_counted_in, is_counted_in=counted_in)
        return _word(command, there, returns, moved=moved)

    def _moved_later(self, word: WordRecord, fingerprint: str) -> bool:
        """Whether a later word that holds moved the fingerprint too: be it to where this one had put it, the newest word wins."""
        said = self._words.constraints(word.project)
        others = said.apart.get(fingerprint, ()) if said is not None else ()
        return any((other.at, other.command_id) > (word.at, word.command_id) for _, other in others)

    async def _unmerge(self, command: GroupCommand, word: WordRecord) -> WordRecord:
        """Everything that came by the link goes back; what has joined since was decided for the report that stays, and stays."""
        project = command.project
        returning, came_by_it = [], dict[str, bool]()
        for fingerprint, pointer in (await self._records.fingerprints_of(project)).items():
            if pointer.report_id not in came_by_it:  # many fingerprints, few reports, and each may have a history of merges
                came_by_it[pointer.report_id] = word.source in await self._records.merged(project, pointer.report_id)
            if came_by_it[pointer.report_id]:
                returning.append(fingerprint)
        if len(returning) > FINGERPRINTS_PER_FACT_MAX:
            raise Refused(f"{len(returning)} fingerprints would go back; at most {FINGERPRINTS_PER_FACT_MAX} can: split them off instead")
        return _word(command, await self._now(project, word.target), word.source, returning=tuple(sorted(returning)))

    async def _finish(self, word: WordRecord, revision: int) -> WordRecord:
        """Do what was planned and record that it is done. Everything here may have been done before."""
        if word.undone_by is not None:  # it went to the dead letters half done, was taken back, and comes from there
            word = word.model_copy(update={"refused": f"command {word.undone_by} took it back before it was done"})
        elif word.action == "merge":
            await self._records.merge(word.project, word.source, word.target, word.command_id)
            await self._index.move(word.project, word.source, word.target)
        elif word.action in ("split", "move"):
            await self._repoint(word)
        elif word.action == "undo":
            await self._take_back(word)
        # Not the time of the command: what was decided until now may have been told of where it was.
        word = word.model_copy(update={"done_at": self._clock.now()})
        await self._words.write(word, revision)
        return word

    async def _take_back(self, undo: WordRecord) -> None:
        assert undo.undoes is not None
        word, revision = await self._words.read(undo.project, undo.undoes)
        if word is None:
            raise Refused(f"command {undo.undoes} was removed from the records while it was taken back")
        if word.action == "merge":
            await self._records.unmerge(undo.project, word.source, word.command_id)
            await self._file(undo.project, undo.returning)
        elif word.action in ("split", "move"):
            await self._repoint(undo)
        if word.undone_by is None:
            await self._words.write(word.model_copy(update={"undone_by": undo.command_id}), revision)

    async def _repoint(self, word: WordRecord) -> None:
        slots = asyncio.Semaphore(READS_AT_ONCE)

        async def repoint(fingerprint: str, moved: Moved) -> Exemplar | None:
            async with slots:
                return await self._records.repoint(word.project, fingerprint, moved.came_from, moved.goes_to, moved.is_counted_in)

        results = await asyncio.gather(*(repoint(*item) for item in word.moved.items()), return_exceptions=True)
        for result in results:  # all are over before the first failure goes up
            if isinstance(result, BaseException):
                raise result
        await self._assign([result for result in results if isinstance(result, Exemplar)])

    async def _file(self, project: str, fingerprints: Sequence[str]) -> None:
        """Write to the index where these fingerprints are now."""
        for start in range(0, len(fingerprints), REINDEX_AT_ONCE):
            chunk = fingerprints[start : start + REINDEX_AT_ONCE]
            records = await asyncio.gather(*(self._records.fingerprint(project, fingerprint) for fingerprint in chunk))
            await self._assign([Exemplar.from_payload(record.exemplar) for record in records if record is not None])

    async def _assign(self, exemplars: Sequence[Exemplar]) -> None:
        if exemplars:
            places = [await self._records.place(item.project, item.report_id, BEFORE_EVERYTHING, "") for item in exemplars]
            await self._index.assign([item.in_report(place.counted) for item, place in zip(exemplars, places, strict=True)])

    async def _now(self, project: str, report_id: str) -> str:
        """The report that this one is now, merges followed."""
        return (await self._records.place(project, report_id, BEFORE_EVERYTHING, "")).report_id

    async def _never(self, project: str, one: str, other: str) -> Said | None:
        standing = await self._words.standing(project, self._records)
        if standing is None:
            return None
        lines = [await self._records.line(project, report_id) for report_id in (one, other)]
        return standing.between(lines[0], lines[1], never=True)


def _other(command: GroupCommand) -> str:
    if command.other_report_id is None:
        names = {"merge": "report_id stays, other_report_id goes", "move": "report_id is left, other_report_id is where to"}
        raise Refused(f"a {command.action} names two reports: {names.get(command.action, 'report_id and other_report_id')}")
    return command.other_report_id


def _word(command: GroupCommand, source: str, target: str, **fields: Any) -> WordRecord:
    said = {
        "project": command.project, "command_id": command.command_id, "action": command.action, "source": source, "target": target,
        "undoes": command.undoes, "actor": command.actor, "reason": command.reason, "at": command.at,
    }  # fmt: skip
    return WordRecord.model_validate(said | fields)


def _fact(command: GroupCommand, word: WordRecord) -> ReportsRegrouped:
    assert word.done_at is not None
    moves = word.action in ("split", "move")
    return ReportsRegrouped(
        project=word.project,
        command_id=word.command_id,
        action=word.action,
        report_id=word.target,
        from_report_id=word.source,
        signal_ids=None if word.action == "merge" else command.signal_ids if moves and not word.refused else (),
        # Also where a merge has brought the two together since: then all stays where it is until that merge is undone.
        fingerprints=tuple(word.moved) or word.returning,
        undoes=word.undoes,
        refused=word.refused,
        actor=word.actor,
        reason=word.reason,
        at=word.done_at if word.refused else word.done_at + HEARD_WITHIN,
    )


class Search:
    """Answers which reports are most like a text."""

    def __init__(self, records: Records, embedding: Embedding, index: VectorIndex) -> None:
        self._records = records
        self._embedding = embedding
        self._index = index

    async def answer(self, query: SearchQuery) -> SearchAnswer:
        """The reports nearest to the text, best first, each once, by its most similar signal.

        The text is compared with what people wrote as they wrote it, and with what machines report without its variable parts, as each of
        them was embedded.
        """
        vectors = await self._embedding.embed([as_written(query.text), parameterise(query.text)])
        found: list[Match] = []
        for vector, kinds in zip(vectors, (PEOPLES_KINDS, MACHINES_KINDS), strict=True):
            asked = [Near(query.limit * SEARCH_FACTOR, Where(kind=kind)) for kind in kinds]
            for matches in await self._index.search(query.project, vector, asked):
                found += matches
        best: dict[str, SearchHit] = {}
        for match in sorted(found, key=lambda match: (-match.similarity, match.exemplar.point_id)):
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
