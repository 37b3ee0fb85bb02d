"""What people have said of the grouping, kept in a key-value bucket: one record for each command, written before anything follows from it.

This service is the bucket's only writer, by compare-and-set. What the words forbid is held in memory and kept current by watching the
bucket: a project of which nothing was said costs a look into a dictionary.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog
from loopwright_common.bus import Bus, Entry, KeyValue
from loopwright_common.contracts.base import Contract, Identifier, Line, ShortText, UtcDatetime
from loopwright_common.contracts.reports import RegroupAction
from pydantic import Field

from loopwright_cluster.constraints import AsTheyStand, Constraints, Word
from loopwright_cluster.domain import Candidate, Decision, Exemplar, Match, Outcome
from loopwright_cluster.grouping.v1 import Surroundings
from loopwright_cluster.grouping.v2 import Judgement
from loopwright_cluster.records import NO_LINKS, READS_AT_ONCE, WATCH_RETRY_SECONDS, Records

WORDS_BUCKET = "cluster_words"  # <project>.<command id> -> WordRecord
REASON_MAX = 2_000

log = structlog.get_logger()


class Moved(Contract):
    """The report that a fingerprint's record names before and after a word, and the reports that the matcher counts it in."""

    came_from: Identifier
    goes_to: Identifier
    was_counted_in: Identifier
    is_counted_in: Identifier


class WordRecord(Contract):
    """A word and what it does, planned before anything is done. ``done_at``: all of it is done, or refused for good.

    ``source`` and ``target`` are reports as things stood then: merge: the one that goes and the one that stays; split and move: the one
    that is left and where to; never_together: the two as they were named; undo: where things are and where they return to.
    """

    project: Identifier
    command_id: Identifier
    action: RegroupAction
    source: Identifier
    target: Identifier
    undoes: Identifier | None = None
    moved: dict[Line, Moved] = Field(default_factory=dict)  # split, move and their undo
    returning: tuple[Line, ...] = ()  # undo of a merge: the fingerprints that are in ``target`` again when the link is cut
    actor: Line
    reason: ShortText = ""
    at: UtcDatetime  # when the person said it
    done_at: UtcDatetime | None = None
    refused: ShortText = ""
    undone_by: Identifier | None = None

    @property
    def holds(self) -> bool:
        """Whether it was not refused and not taken back."""
        return not self.refused and self.undone_by is None and self.action != "undo"

    def forbids(self) -> Word | None:
        """What must not be, as long as the word holds; None when nothing."""
        if not self.holds or self.action in ("merge", "undo"):
            return None
        if self.action == "never_together":
            return Word(self.command_id, self.actor, self.at, ((self.target, self.source),), never=True)
        apart = {key: tuple(dict.fromkeys((self.source, moved.came_from))) for key, moved in self.moved.items()}
        left = dict.fromkeys([self.source, *(moved.came_from for moved in self.moved.values())])
        pairs = tuple((self.target, report) for report in left) if self.action == "split" else ()
        return Word(self.command_id, self.actor, self.at, pairs, apart)


class Words:
    """The bucket. ``start`` loads what was said and follows it; ``stop`` ends that."""

    def __init__(self, store: KeyValue) -> None:
        self._store = store
        self._said: dict[str, dict[str, tuple[int, Word | None]]] = {}  # project -> command -> revision, and what it forbids
        self._constraints: dict[str, Constraints] = {}
        self._standing: dict[str, tuple[Constraints, int, AsTheyStand]] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, bus: Bus) -> Words:
        """The words on this bus's bucket."""
        return cls(await bus.key_value(WORDS_BUCKET))

    async def start(self, timeout: float = 60.0) -> None:
        """Follow the bucket; returns once all that was said has been read. Raises TimeoutError."""
        loaded = asyncio.Event()
        self._task = asyncio.create_task(self._follow(loaded), name="word records")
        async with asyncio.timeout(timeout):
            await loaded.wait()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def read(self, project: str, command_id: str) -> tuple[WordRecord | None, int]:
        """A command's record and its revision, from the store; (None, 0) when there is none."""
        entry = await self._store.get(f"{project}.{command_id}")
        if entry is None or not entry.value:
            return None, 0
        return WordRecord.model_validate_json(entry.value), entry.revision

    async def write(self, record: WordRecord, revision: int) -> int:
        """Compare-and-set; revision 0 creates. Returns the new revision. Raises Conflict."""
        key, data = f"{record.project}.{record.command_id}", record.model_dump_json().encode()
        new = await (self._store.update(key, data, revision) if revision else self._store.create(key, data))
        self._remember(record, new)
        return new

    async def all_of(self, project: str) -> list[WordRecord]:
        """Everything that was ever said of a project, as it came."""
        slots = asyncio.Semaphore(READS_AT_ONCE)

        async def read(key: str) -> Entry | None:
            async with slots:
                return await self._store.get(key)

        found = await asyncio.gather(*map(read, await self._store.keys(f"{project}.")))
        records = [WordRecord.model_validate_json(entry.value) for entry in found if entry is not None and entry.value]
        return sorted(records, key=lambda record: (record.done_at or record.at, record.command_id))

    def constraints(self, project: str) -> Constraints | None:
        """What is forbidden in a project; None when nothing is."""
        said = self._said.get(project)
        if not said:
            return None
        if project not in self._constraints:
            self._constraints[project] = Constraints(word for _, word in said.values() if word is not None)
        return self._constraints[project] or None

    async def standing(self, project: str, records: Records, links: Mapping[str, Mapping[str, str]] = NO_LINKS) -> AsTheyStand | None:
        """What is forbidden as things stand, with ``links`` that are decided and not yet written; None when nothing is."""
        constraints = self.constraints(project)
        if constraints is None:
            return None
        known = self._standing.get(project)
        if known is not None and known[0] is constraints and known[1] == records.links_changed and not links:
            return known[2]
        changed = records.links_changed
        found = AsTheyStand(constraints, {end: await records.line(project, end, links) for end in constraints.ends})
        if not links:
            self._standing[project] = (constraints, changed, found)
        return found

    async def _follow(self, loaded: asyncio.Event) -> None:
        while True:
            try:
                present: set[tuple[str, str]] | None = set()
                async for entry in self._store.watch():
                    if entry is None:
                        self._forget_all_but(present or set())
                        present = None
                        loaded.set()
                    else:
                        name = self._hear(entry)
                        if present is not None:
                            present.add(name)
            except Exception as error:  # what was said goes on holding as it is remembered
                log.warning("word_watch_interrupted", error=str(error), retry_seconds=WATCH_RETRY_SECONDS)
            await asyncio.sleep(WATCH_RETRY_SECONDS)

    def _hear(self, entry: Entry) -> tuple[str, str]:
        project, _, command_id = entry.key.partition(".")
        if entry.value:
            self._remember(WordRecord.model_validate_json(entry.value), entry.revision)
        else:
            self._said.get(project, {}).pop(command_id, None)
            self._constraints.pop(project, None)
        return project, command_id

    def _remember(self, record: WordRecord, revision: int) -> None:
        said = self._said.setdefault(record.project, {})
        if said.get(record.command_id, (0, None))[0] < revision:
            said[record.command_id] = (revision, record.forbids())
            self._constraints.pop(record.project, None)

    def _forget_all_but(self, present: Iterable[tuple[str, str]]) -> None:
        keep = set(present)
        for project, said in self._said.items():
            for command_id in [command_id for command_id in said if (project, command_id) not in keep]:
                del said[command_id]
                self._constraints.pop(project, None)


@dataclass
class Apart:
    """What people's words forbid for one newcomer. ``names``: its fingerprint and its other keys, each with the report it is in ("": none).

    ``notes`` gathers what was left out and by whose word, for the decision's reason.
    """

    project: str
    standing: AsTheyStand
    records: Records
    names: Mapping[str, str]
    links: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    async def against(self, report_id: str) -> Word | None:
        """The word by which the newcomer may not go into this report."""
        for name, current in self.names.items():
            if not self.standing.tells_of(name):  # nearly always
                continue
            its = await self._line(current) if current else frozenset()
            word = self.standing.of(name, its, await self._line(report_id))
            if word is not None:
                return word
        return None

    async def admitted(self, around: Surroundings) -> Surroundings:
        """The surroundings without the reports that the newcomer may not go into."""
        same_kind = {report: matches for report, matches in around.same_kind.items() if await self.against(report) is None}
        return replace(around, neighbours=await self.among(around.neighbours), same_kind=same_kind)

    async def among(self, matches: Sequence[Match]) -> list[Match]:
        """The matches whose reports the newcomer may go into."""
        return [match for match in matches if await self._admits(match.exemplar)]

    async def held(self, judgement: Judgement) -> Judgement:
        """The judgement as people's words leave it: no join against a word, and nobody is asked about two reports that are kept apart.

        Of two such reports the better ranked one stays.
        """
        decision = judgement.decision
        if decision.report_id is not None and (word := await self.against(decision.report_id)) is not None:
            reason = f"{decision.reason[:1_000]}; but {word.said}"
            return replace(judgement, decision=Decision(Outcome.OPEN, None, reason, decision.candidates), unsure=())
        kept: list[Candidate] = []
        for candidate in judgement.unsure:
            word = await self.against(candidate.report_id)
            for better in kept:
                word = word or await self._between(candidate, better)
            if word is None:
                kept.append(candidate)
            else:
                self.note(f"“{_short(candidate.match.exemplar.title)}” was left out of what may be asked about: {word.said}")
        return replace(judgement, unsure=tuple(kept))

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def with_notes(self, reason: str) -> str:
        """The reason with what was left out."""
        return "; ".join([reason[: REASON_MAX // 2], *self.notes])[:REASON_MAX] if self.notes else reason

    async def _admits(self, exemplar: Exemplar) -> bool:
        word = await self.against(exemplar.report_id)
        if word is not None:
            self.note(f"“{_short(exemplar.title)}” was left out: {word.said}")
        return word is None

    async def _between(self, one: Candidate, other: Candidate) -> Word | None:
        first, second = await self._line(one.report_id), await self._line(other.report_id)
        return (
            self.standing.between(first, second)
            or self.standing.of(one.match.exemplar.fingerprint, first, second)
            or self.standing.of(other.match.exemplar.fingerprint, second, first)
        )

    async def _line(self, report_id: str) -> frozenset[str]:
        return await self.records.line(self.project, report_id, self.links)


def _short(title: str) -> str:
    return title if len(title) <= 80 else title[:79] + "…"
