"""The ordered flow: a batch of signals is decided one after another, stored, published, and only then acknowledged.

Why the order of the steps makes every effect happen once, wherever the process dies:

0. Of what a model may be asked about the records are first, one after another: they could come out otherwise another time, and what came
   after them was decided by them. Then resolved reports are linked to those that follow; a link names the signal that opens that one.
1. A new fingerprint's record (report, decision, all that is needed to index it) is created by compare-and-set. From here on it is decided.
2. Its point goes into the vector index. Only recorded fingerprints are ever in there.
3. What the fingerprinting learned and noted is stored.
4. The facts are published under ids derived from the signals; those of one known fingerprint in one fact.
5. The bus acknowledges the batch.

A batch with many new fingerprints goes through 1 to 4 in parts, so that the first are told while the last are still embedded.

A signal that comes again finds its record and repeats steps 2 to 4 with the recorded decision: the same point, and the same fact, though
perhaps together with other signals than the first time. Who counts signals counts each id once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import structlog
from loopwright_common import telemetry
from loopwright_common.bus import Bus, Outgoing, Received
from loopwright_common.clock import Clock
from loopwright_common.contracts.reports import SIGNALS_PER_FACT_MAX, GroupingDecision, GroupUpdated, Neighbour
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import GROUPS_UPDATED
from loopwright_common.errors import Permanent
from loopwright_common.identifiers import derived_id
from loopwright_common.metrics import observe_stages
from prometheus_client import Counter

from loopwright_cluster.adjudication import Inquiry
from loopwright_cluster.comparison_records import ComparisonRecords
from loopwright_cluster.costly import CostlyPath
from loopwright_cluster.domain import Candidate, Decision, Exemplar, Outcome
from loopwright_cluster.fingerprinting import Elsewhere, Fingerprinting
from loopwright_cluster.grouping.describe import describe
from loopwright_cluster.grouping.fingerprints import Fingerprint
from loopwright_cluster.judging import Judging
from loopwright_cluster.neighbourhood import Neighbourhood, Vector
from loopwright_cluster.ports import Embedding, VectorIndex, Vectors
from loopwright_cluster.records import FingerprintRecord, Place, Pointer, Records, link_to
from loopwright_cluster.word_records import Apart, Words

NEIGHBOURS_SHOWN = 10  # as many as the contract carries
NEW_PER_PART = 64  # new fingerprints, half a second of a core
EMBEDDED_AT_ONCE = 8  # texts, 50 ms of a core: the first are decided while the next are embedded
NOT_ASKED = Pointer("", "")
BEFORE_EVERYTHING = datetime.min.replace(tzinfo=UTC)  # for what belongs to a report whether or not it was resolved since
# Decisions that are the same for every signal of a fingerprint, and are told of together.
TOGETHER = frozenset({"fingerprint", "explicit_fingerprint"})
# Of signals in one fact: some 80 usual ones, a hundredth of the cost of as many facts. Who reads them may hold 100 facts at once.
FACT_BYTES_MAX = 128 * 1024

GROUPED = Counter("loopwright_cluster_signals_grouped", "Signals put into a report.", ["outcome", "rule"])
DEGRADED = Counter("loopwright_cluster_fingerprints_degraded", "New fingerprints that were not compared with earlier reports.", ["reason"])

log = structlog.get_logger()
Key = tuple[str, str]  # project, fingerprint


@dataclass(slots=True)  # not frozen: that doubles what it costs to make one, and one is made of every signal
class Grouped:
    """A signal with its report: what is published of it."""

    signal: Signal
    report_id: str
    decision: GroupingDecision
    recurrence_of: str | None = None
    decided_at: datetime | None = None


class ProjectLocks:
    """A lock for each project: within this process, one thing at a time happens to its reports. What is not held is forgotten."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, project: str) -> asyncio.Lock:
        """The lock of a project."""
        return self._locks.setdefault(project, asyncio.Lock())


class SignalGrouping:
    """Puts each signal of the stream into a report and says so. One batch of a project at a time; the other handlers share ``locks``."""

    def __init__(
        self,
        bus: Bus,
        records: Records,
        embedding: Embedding,
        index: VectorIndex,
        clock: Clock,
        locks: ProjectLocks,
        costly: CostlyPath,
        fingerprinting: Fingerprinting,
        judging: Judging | None = None,
        words: Words | None = None,
        compared: ComparisonRecords | None = None,
    ) -> None:
        self._words = words
        self._compared = compared
        self._bus = bus
        self._records = records
        self._embedding = embedding
        self._index = index
        self._clock = clock
        self._locks = locks
        self._costly = costly
        self._fingerprinting = fingerprinting
        self._judging = judging or Judging()

    async def handle(self, batch: Sequence[Received[Signal]]) -> None:
        """Decide, store, publish. Raises Conflict when another replica wrote meanwhile; the batch is then handed in again."""
        for message in batch:
            if message.payload.project != message.project:
                raise Permanent(f"a signal of project {message.payload.project!r} came on {message.subject!r}")
        by_project: dict[str, list[Received[Signal]]] = defaultdict(list)
        for message in batch:  # the bus hands in one project at a time; to decide a project at a time is what counts
            by_project[message.project].append(message)
        for project, messages in by_project.items():
            async with self._locks.of(project):
                await self._group(project, messages)
                if self._compared is not None:
                    await self._compared.add(project, self._judging.comparison.take(project))

    async def _group(self, project: str, messages: Sequence[Received[Signal]]) -> None:
        async with _Batch(self, [message.payload for message in messages]) as work:
            for part in work.parts():
                grouped = await work.decide(part)
                await work.store()
                work.led(project, await self._fingerprinting.save(project))
                await self._publish(grouped, messages[part.start : part.stop])

    async def _publish(self, grouped: Sequence[Grouped], batch: Sequence[Received[Signal]]) -> None:
        now = self._clock.now()
        outgoing = [_outgoing([grouped[at] for at in run], [batch[at] for at in run], now) for run in runs(grouped, batch)]
        await self._bus.publish_batch(outgoing)
        for (outcome, rule), number in Tally((item.decision.outcome, item.decision.rule) for item in grouped).items():
            GROUPED.labels(outcome, rule).inc(number)
        observe_stages("accepted_to_grouped", (item.signal.received_at for item in grouped), now)
        for item in grouped:
            if item.decision.outcome == "opened":
                log.info("report_opened", project=item.signal.project, report_id=item.report_id, signal_id=item.signal.id)


def runs(grouped: Sequence[Grouped], batch: Sequence[Received[Signal]]) -> list[list[int]]:
    """Which of the signals are told of in one fact: those of a known fingerprint that go to the same report, as far as a fact holds them.

    A fact stands where its first signal stood, so the one that opens a report comes before all others of it.
    """
    found: list[list[int]] = []
    open_runs: dict[tuple[str, str, str, str], tuple[list[int], int]] = {}
    for at, item in enumerate(grouped):
        decision = item.decision
        if decision.rule not in TOGETHER:
            found.append([at])
            continue
        key = (item.report_id, decision.fingerprint, decision.rule, decision.reason)
        size = len(batch[at].stored)
        run, held = open_runs.get(key, (None, 0))
        if run is None or held + size > FACT_BYTES_MAX or len(run) >= SIGNALS_PER_FACT_MAX:
            run, held = [], 0
            found.append(run)
        run.append(at)
        open_runs[key] = (run, held + size)
    return found


def _outgoing(items: Sequence[Grouped], messages: Sequence[Received[Signal]], now: datetime) -> Outgoing:
    first = items[0]
    signal, others = first.signal, [item.signal for item in items[1:]]
    # Without the others: what is sent is ``written``, and a flood is not checked a second time.
    fact = GroupUpdated(
        project=signal.project,
        report_id=first.report_id,
        signal=signal,
        decision=first.decision,
        recurrence_of=first.recurrence_of,
        decided_at=first.decided_at or now,
    )
    named = signal.id if not others else derived_id("together", signal.id, *(other.id for other in others))
    stored = [message.stored for message in messages]
    outgoing = partial(
        Outgoing,
        GROUPS_UPDATED,
        fact.model_copy(update={"more": tuple(others)}) if others else fact,
        f"group-{signal.project}-{named}",
        {"project": signal.project},
        about=first.report_id,
        written=_written(fact, stored) if all(stored) else b"",
    )
    # A trace that nobody records needs no span and no link: in a flood that is most of them.
    parent = messages[0].envelope.traceparent
    also = [message.envelope.traceparent for message in messages[1:] if message.envelope.traceparent.endswith("-01")]
    unrecorded = telemetry.passed_on(parent)
    if unrecorded is not None and not also:
        return outgoing(traceparent=unrecorded)
    attributes: dict[str, Any] = {"loopwright__grouping__outcome": first.decision.outcome, "loopwright__report__id": first.report_id}
    with telemetry.part("group signal", parent, also, **attributes):
        return outgoing()


def _written(fact: GroupUpdated, signals: Sequence[bytes]) -> bytes:
    """The fact as JSON with its signals in it as they came: they were read and found right, so none is written anew."""
    alone = fact.model_dump_json(exclude={"signal", "more"}).encode()
    return b"".join((alone[:-1], b',"signal":', signals[0], b',"more":[', b",".join(signals[1:]), b"]}"))


def report_id_for(signal: Signal) -> str:
    """The id of the report that a signal opens: the same whenever and wherever it is decided."""
    return derived_id("report", signal.project, signal.id)


class _Draft:
    """The records as they will be when the batch is stored: links from resolved reports wait until it is decided for good."""

    def __init__(self, records: Records) -> None:
        self.pointer, self.fingerprint, self.create = records.pointer, records.fingerprint, records.create
        self.pointers, self.create_many = records.pointers, records.create_many
        self._records = records
        self.links: dict[str, dict[str, str]] = {}  # by the report that is left
        self._project = ""

    async def place(self, project: str, report_id: str, occurred_at: datetime, signal_id: str) -> Place:
        return await self._records.place(project, report_id, occurred_at, signal_id, self.links)

    def open_recurrence(self, project: str, resolved: str, successor: str, signal_id: str, reason: str) -> None:
        self._project = project
        self.links[resolved] = link_to(successor, signal_id, reason)

    def give(self, project: str, never_opened: str, report_id: str) -> None:
        self._project = project
        self.links[never_opened] = {"given_to": report_id}

    async def write_links(self) -> None:
        """Raises Conflict when another replica has linked one of the reports meanwhile."""
        for report_id, link in self.links.items():
            if "given_to" in link:
                await self._records.give(self._project, report_id, link["given_to"])
            else:
                successor = link["successor"], link["successor_signal"], link["successor_reason"]
                await self._records.open_recurrence(self._project, report_id, *successor)

    def __len__(self) -> int:
        return len(self.links)

    def take_back(self, count: int) -> None:
        for resolved in list(self.links)[count:]:
            del self.links[resolved]


@dataclass(frozen=True)
class _Mark:
    """How far the batch was when a newcomer was found unsure: where it stands, and how many had been added, created and linked."""

    at: int
    added: int
    created: int
    linked: int


class _Batch:
    """The decisions of one batch, each seeing those before it."""

    def __init__(self, grouping: SignalGrouping, signals: Sequence[Signal]) -> None:
        self._records = _Draft(grouping._records)
        self._judging = grouping._judging
        self._words, self._written = grouping._words, grouping._records
        self._index = grouping._index
        self._embedding = grouping._embedding
        self._costly = grouping._costly
        self._now = grouping._clock.now()
        self._fingerprinting = grouping._fingerprinting
        self._signals = [(signal, grouping._fingerprinting.of(signal)) for signal in signals]
        self._neighbourhood = Neighbourhood(grouping._index, degraded=grouping._embedding.degraded)
        self._pointers: dict[Key, Pointer | None] = {}
        self._aliases: dict[Key, str] = {}
        self._created: dict[Key, FingerprintRecord] = {}
        self._vectors: dict[Key, asyncio.Task[Vectors]] = {}  # being made while what came before is decided
        self._rows: dict[Key, int] = {}
        self._described: dict[str, Exemplar] = {}  # by signal
        self._same: dict[Key, Grouped] = {}  # of fingerprints whose report takes whatever occurs, whenever it occurred
        self._inquiry = grouping._judging.inquiry()
        self._marks: list[_Mark] = []  # one for each question

    async def __aenter__(self) -> _Batch:
        """Looks up what is known and begins the vectors of the rest."""
        try:
            await self._look_up()
            await self._embed()
            await self._look_elsewhere()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        making = set(self._vectors.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)

    def parts(self) -> list[slice]:
        """The batch in pieces that are decided, stored and told one after the other: while one is stored the next one is embedded.

        A model is asked about a batch as a whole, so then it is one piece.
        """
        ends = []
        if self._inquiry is None:
            new = list(self._vectors)
            last = {key: at for at, key in enumerate(new) if (at + 1) % NEW_PER_PART == 0}
            for at, (signal, found) in enumerate(self._signals, 1):
                if last.pop((signal.project, found.key), None) is not None:
                    ends.append(at)
        if not ends or ends[-1] < len(self._signals):
            ends.append(len(self._signals))
        return [slice(start, end) for start, end in itertools.pairwise((0, *ends))]

    async def decide(self, part: slice) -> list[Grouped]:
        """Return where each signal of the part goes, in order, after the parts before it were stored. Writes nothing.

        Decided as without a model; what is unsure is asked about together, and from the first answer that matters on anew.
        """
        if self._inquiry is None:
            # Nothing is asked, so nothing is taken back: known signals come by the ten thousand here.
            return [self._as_before(signal, found) or await self._place(signal, found) for signal, found in self._signals[part]]
        grouped = await self._decided(0)
        changed = await self._inquiry.ask()
        if changed is not None:
            mark = self._marks[changed]
            self._take_back(mark)
            grouped[mark.at :] = await self._decided(mark.at)
        return self._told_why(grouped, self._inquiry)

    async def _decided(self, start: int) -> list[Grouped]:
        assert self._inquiry is not None
        grouped = []
        for at, (signal, found) in enumerate(self._signals[start:], start):
            mark = _Mark(at, len(self._neighbourhood.pending), len(self._created), len(self._records))
            grouped.append(self._as_before(signal, found) or await self._place(signal, found))
            if len(self._inquiry.questions) > len(self._marks):
                self._marks.append(mark)
        return grouped

    def _take_back(self, mark: _Mark) -> None:
        """The batch as it was before the signal at the mark. What was noted of fingerprints stays: their keys are the same."""
        self._neighbourhood.take_back(mark.added)
        self._records.take_back(mark.linked)
        self._same.clear()
        for key in list(self._created)[mark.created :]:
            del self._created[key]
            self._pointers[key] = None

    def _told_why(self, grouped: Sequence[Grouped], inquiry: Inquiry) -> list[Grouped]:
        """The unsure ones that the model gave no report say so in their reason."""
        for key, record in self._created.items():
            why = inquiry.told.get(key[1])
            if why is not None:
                reason = f"{record.decision.reason[:1_500]}; {why}"
                self._created[key] = record.model_copy(update={"decision": record.decision.model_copy(update={"reason": reason})})
        result = []
        for item in grouped:
            key = (item.signal.project, item.decision.fingerprint)
            if key[1] in inquiry.told and key in self._created and self._created[key].signal_id == item.signal.id:
                item = replace(item, decision=self._created[key].decision)
            result.append(item)
        return result

    async def store(self) -> None:
        """Record the part's new fingerprints, then index them. Raises Conflict."""
        unsure = {key: record for key, record in self._created.items() if self._inquiry is not None and key[1] in self._inquiry.unsure}
        for key, record in unsure.items():
            await self._records.create(*key, record)
        await self._records.write_links()
        await self._records.create_many({key: record for key, record in self._created.items() if key not in unsure})
        pending = self._neighbourhood.pending
        if pending:
            await self._index.upsert([exemplar for exemplar, _ in pending], np.stack([vector for _, vector in pending]))
            self._judging.stored([exemplar for exemplar, _ in pending])
        self._created.clear()
        self._records.links.clear()
        self._neighbourhood.stored()

    def led(self, project: str, aliases: Mapping[str, str]) -> None:
        """Other keys that were stored with a part lead there for the next ones too; the first that a key led to holds."""
        for key, fingerprint in aliases.items():
            self._aliases[project, key] = self._aliases.get((project, key)) or fingerprint

    async def _look_up(self) -> None:
        self._pointers = await self._records.pointers(
            list({(signal.project, found.key): None for signal, found in self._signals if signal.about_report is None})
        )

    async def _look_elsewhere(self) -> None:
        """Ask at once for what tells whether the new ones are known under other keys: one by one it was a third of their time."""
        new: dict[Key, tuple[Signal, Fingerprint]] = {}
        for signal, found in self._signals:
            if self._pointers.get((signal.project, found.key), NOT_ASKED) is None:
                new.setdefault((signal.project, found.key), (signal, found))
        if new:
            self._aliases = await self._fingerprinting.stored_aliases(list(new.values()))
            others = {(project, fingerprint) for (project, key), led in self._aliases.items() for fingerprint in (key, led) if fingerprint}
            self._pointers |= await self._records.pointers(sorted(others - self._pointers.keys()))

    async def _pointer(self, key: Key) -> Pointer | None:
        return self._pointers[key] if key in self._pointers else await self._records.pointer(*key)

    async def _embed(self) -> None:
        """Begins the vectors of what is new, and of what was recorded but perhaps not indexed: its first signal has come again."""
        new: dict[Key, tuple[Signal, Fingerprint]] = {}
        for signal, found in self._signals:
            key = (signal.project, found.key)
            pointer = self._pointers.get(key)
            if signal.about_report is None and key not in new and (pointer is None or pointer.signal_id == signal.id):
                new[key] = (signal, found)
        if not new:
            return
        project = next(iter(new))[0]
        keys = list(new)[: self._costly.take(project, len(new), self._now)]
        if len(keys) < len(new):
            DEGRADED.labels("new_fingerprints_per_minute").inc(len(new) - len(keys))
            log.warning("grouping_degraded", project=project, reason=self._over_limit, fingerprints=len(new) - len(keys))
        for start in range(0, len(keys), EMBEDDED_AT_ONCE):
            chunk = keys[start : start + EMBEDDED_AT_ONCE]
            task = asyncio.create_task(self._embedding.embed([self._describe(*new[key]).text for key in chunk]))
            for row, key in enumerate(chunk):
                self._vectors[key], self._rows[key] = task, row
            await asyncio.sleep(0)  # it is embedded in another thread while the next ones are described

    def _describe(self, signal: Signal, found: Fingerprint) -> Exemplar:
        """The signal as an exemplar: told once, for its vector and for its decision."""
        known = self._described.get(signal.id)
        if known is None or known.fingerprint != found.key:
            known = self._described[signal.id] = describe(signal, found)
        return known

    @property
    def _over_limit(self) -> str:
        limit = "LOOPWRIGHT_CLUSTER_NEW_FINGERPRINTS_PER_MINUTE"
        return f"more than {self._costly.per_minute} new fingerprints of this project in a minute ({limit})"

    async def _vector(self, key: Key) -> Vector | None:
        """The vector of a fingerprint; None when it is beyond the limit."""
        task = self._vectors.get(key)
        if task is None:
            return None
        vectors, row = await task, self._rows[key]
        if row == 0:  # the first of those that were embedded together, which are decided one after another
            await self._index.foresee(key[0], vectors)
        found: Vector = vectors[row]
        return found

    async def _place(self, signal: Signal, found: Fingerprint) -> Grouped:
        if signal.about_report is not None:
            return await self._about(signal, found, signal.about_report)
        pointer = self._pointers[signal.project, found.key]
        if pointer is None:
            return await self._newcomer(signal, found)
        if pointer.signal_id == signal.id:
            return await self._again(signal, found)
        return await self._known(signal, found, pointer)

    async def _about(self, signal: Signal, found: Fingerprint, report_id: str) -> Grouped:
        place = await self._records.place(signal.project, report_id, BEFORE_EVERYTHING, signal.id)
        reason = f"its sender says that it is about this report (it comes from {signal.source})"
        return Grouped(signal, place.report_id, self._decision(Outcome.JOIN, "about_report", reason, found))

    def _as_before(self, signal: Signal, found: Fingerprint) -> Grouped | None:
        """The decision about the signal before it with this fingerprint, where it holds for every signal but the first."""
        same = self._same.get((signal.project, found.key))
        if same is None or signal.about_report is not None or self._pointers[signal.project, found.key].signal_id == signal.id:  # type: ignore[union-attr]
            return None
        return Grouped(signal, same.report_id, same.decision)

    async def _known(self, signal: Signal, found: Fingerprint, pointer: Pointer) -> Grouped:
        place = await self._records.place(signal.project, pointer.report_id, _occurred(signal), signal.id)
        same = f"same {found.rule} fingerprint as earlier signals: {found.described}"
        if place.recurred is not None:
            return await self._recurrence(signal, found, place, same)
        rule = "explicit_fingerprint" if found.rule == "explicit" else "fingerprint"
        grouped = Grouped(signal, place.report_id, self._decision(Outcome.JOIN, rule, same, found))
        if place.always:
            self._same[signal.project, found.key] = grouped
        return grouped

    async def _again(self, signal: Signal, found: Fingerprint) -> Grouped:
        """The first signal of a fingerprint, delivered once more: the recorded decision holds."""
        key = (signal.project, found.key)
        record = self._created.get(key) or await self._records.fingerprint(*key)
        if record is None:  # the record was removed by hand since it was looked up
            return await self._newcomer(signal, found)
        self._fingerprinting.note(signal, found)  # it may have died between the record and its other keys
        vector = await self._vector(key)
        exemplar = Exemplar.from_payload(record.exemplar)
        if vector is not None:
            self._neighbourhood.add(exemplar, vector)
        if exemplar.report_id == report_id_for(signal) != record.report_id:  # given by a model: the same
            stands = await self._records.place(signal.project, exemplar.report_id, BEFORE_EVERYTHING, signal.id)
            if not stands.given:
                self._records.give(signal.project, exemplar.report_id, record.report_id)
        if record.recurrence_of is not None:  # it may have died between the record and the link
            resolved = await self._records.place(signal.project, record.recurrence_of, _occurred(signal), signal.id)
            if resolved.recurred is not None and not resolved.report_id:
                self._records.open_recurrence(signal.project, resolved.recurred, record.report_id, signal.id, record.decision.reason)
        place = await self._records.place(signal.project, record.report_id, BEFORE_EVERYTHING, signal.id)
        return Grouped(signal, place.report_id, record.decision, record.recurrence_of, record.decided_at)

    async def _newcomer(self, signal: Signal, found: Fingerprint) -> Grouped:
        key = (signal.project, found.key)
        newcomer, vector = self._describe(signal, found), await self._vector(key)

        shown: dict[str, str] = {}

        async def standing(exemplar: Exemplar) -> tuple[str, bool]:
            place = await self._records.place(signal.project, exemplar.report_id, _occurred(signal), signal.id)
            if place.given:
                shown[place.counted] = place.recurred or place.report_id
            return place.counted, place.quiet

        others = await self._fingerprinting.elsewhere(signal, found, self._aliases)
        apart = await self._apart(signal, found, others)
        grouped = await self._elsewhere(signal, found, others, apart)
        if grouped is not None:
            exemplar = newcomer.in_report(grouped.report_id)
            if vector is not None:
                self._neighbourhood.add(exemplar, vector)
        elif vector is None:
            reason = f"new fingerprint, not compared with earlier reports: {self._over_limit}"
            opened = self._decision(Outcome.OPEN, "new", reason, found).model_copy(update={"degraded": True})
            grouped = Grouped(signal, report_id_for(signal), opened)
            exemplar = newcomer.in_report(grouped.report_id)  # recorded; it is indexed when the service starts next
        else:
            judged = await self._judging.decide(self._index, self._neighbourhood, newcomer, vector, standing, self._inquiry, shown, apart)
            grouped = await self._settle(signal, found, judged.decision)
            similar = dict.fromkeys(item.report_id for item in judged.similar if item.report_id != grouped.report_id)
            linked = grouped.decision.model_copy(update={"similar": tuple(similar)[:NEIGHBOURS_SHOWN]})
            grouped = replace(grouped, decision=linked)
            exemplar = newcomer.in_report(self._counted_in(grouped, newcomer, judged.decision))
            self._neighbourhood.add(exemplar, vector)
        if apart is not None and apart.notes:
            explained = grouped.decision.model_copy(update={"reason": apart.with_notes(grouped.decision.reason)})
            grouped = replace(grouped, decision=explained)
        if grouped.report_id == report_id_for(signal):
            self._written.opened(signal.project, grouped.report_id)
        self._fingerprinting.note(signal, found)
        self._pointers[key] = Pointer(grouped.report_id, signal.id)
        self._created[key] = FingerprintRecord(
            report_id=grouped.report_id,
            signal_id=signal.id,
            decision=grouped.decision,
            recurrence_of=grouped.recurrence_of,
            decided_at=self._now,
            exemplar=exemplar.to_payload(),
        )
        return grouped

    async def _apart(self, signal: Signal, found: Fingerprint, others: Sequence[Elsewhere]) -> Apart | None:
        """What people's words forbid for a newcomer, by any of its keys; None in a project where they forbid nothing."""
        project = signal.project
        standing = await self._words.standing(project, self._written, self._records.links) if self._words is not None else None
        if standing is None:
            return None
        names = {found.key: ""}
        for other in others:
            key = (project, other.fingerprint)
            pointer = await self._pointer(key)
            names[other.fingerprint] = pointer.report_id if pointer is not None else ""
        return Apart(project, standing, self._written, names, self._records.links)

    async def _elsewhere(self, signal: Signal, found: Fingerprint, others: Sequence[Elsewhere], apart: Apart | None) -> Grouped | None:
        """Where the same problem is known under another key, as a wrapper or another version of the fingerprints makes one."""
        for other in others:
            key = (signal.project, other.fingerprint)
            pointer = await self._pointer(key)
            if pointer is None:
                continue
            against = await apart.against(pointer.report_id) if apart is not None else None
            if apart is not None and against is not None:
                apart.note(f"report {pointer.report_id}, where another of its keys leads, was left out: {against.said}")
                continue
            place = await self._records.place(signal.project, pointer.report_id, _occurred(signal), signal.id)
            if place.recurred is not None:
                return await self._recurrence(signal, found, place, other.reason)
            return Grouped(signal, place.report_id, self._decision(Outcome.JOIN, "fingerprint", other.reason, found))
        return None

    def _counted_in(self, grouped: Grouped, newcomer: Exemplar, decision: Decision) -> str:
        """The report that the matcher counts a judged newcomer in: its own also where a model has given it to another one.

        So what a model says has no part in any other decision: how rare a name is, which reports are rivals, what a report already holds.
        Who is counted in that report is in the other one.
        """
        if grouped.recurrence_of is not None or decision.report_id is None:
            return grouped.report_id
        if self._inquiry is None or newcomer.fingerprint not in self._inquiry.given:
            return next(item for item in decision.candidates if item.report_id == decision.report_id).match.exemplar.report_id
        never_opened = report_id_for(grouped.signal)
        self._records.give(newcomer.project, never_opened, grouped.report_id)
        return never_opened

    async def _settle(self, signal: Signal, found: Fingerprint, decision: Decision) -> Grouped:
        """A matcher's decision, with what has become of the report it names."""
        if decision.report_id is None:
            opened = self._decision(Outcome.OPEN, "new", decision.reason, found, decision.candidates)
            return Grouped(signal, report_id_for(signal), opened)
        place = await self._records.place(signal.project, decision.report_id, _occurred(signal), signal.id)
        if place.recurred is not None:
            return await self._recurrence(signal, found, place, decision.reason, decision.candidates)
        joined = self._decision(Outcome.JOIN, "similarity", decision.reason, found, decision.candidates)
        return Grouped(signal, place.report_id, joined)

    async def _recurrence(
        self, signal: Signal, found: Fingerprint, place: Place, same: str, candidates: Sequence[Candidate] = ()
    ) -> Grouped:
        """A resolved report never swallows: the first signal after it opens the report that follows, the others go there."""
        reason = place.reason or f"{same[:400]}; that report was resolved before this occurred, so it opens a new one linked to it"
        report_id = place.report_id or report_id_for(signal)
        assert place.recurred is not None
        self._records.open_recurrence(signal.project, place.recurred, report_id, signal.id, reason)
        opened = self._decision(Outcome.OPEN, "recurrence", reason, found, candidates)
        return Grouped(signal, report_id, opened, place.recurred)

    def _decision(
        self, outcome: Outcome, rule: str, reason: str, found: Fingerprint, candidates: Sequence[Candidate] = ()
    ) -> GroupingDecision:
        return GroupingDecision.model_validate(
            {
                "outcome": outcome.value,
                "rule": rule,
                "reason": reason[:2_000],
                "fingerprint": found.key,
                "neighbours": [_neighbour(item) for item in candidates[:NEIGHBOURS_SHOWN]],
                "grouping_version": self._judging.version,
                # A fingerprint is as good without a model; what was compared with a stand-in says so.
                "degraded": self._embedding.degraded and rule in {"new", "similarity", "recurrence"},
            }
        )


def _neighbour(candidate: Candidate) -> Neighbour:
    exemplar = candidate.match.exemplar
    return Neighbour(
        signal_id=exemplar.signal_id,
        report_id=candidate.report_id,
        title=exemplar.title,
        kind=exemplar.kind,
        similarity=candidate.match.similarity,
        features=dict(candidate.features),
    )


def _occurred(signal: Signal) -> datetime:
    """When it occurred, as far as a sender's clock is to be believed: never after it arrived."""
    return min(signal.occurred_at, signal.received_at)
