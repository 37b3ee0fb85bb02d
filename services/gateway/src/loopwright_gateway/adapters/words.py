"""The statements of people's words on the grouping. What a word moves is moved by the database: none of it is read into memory."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Table, and_, case, delete, func, literal, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from loopwright_gateway.adapters import tables as t
from loopwright_gateway.records import Carried, FingerprintMove, FirstDecision, Kept, WordRecord

CHUNK = 500  # bound parameters per statement: SQLite takes 32,766, PostgreSQL 32,767
EXAMPLES_GIVEN_MAX = 10  # as many as a report keeps of its first signals
KNOWN = "fingerprint"  # the rule of a signal whose fingerprint was known: it says less than the one of the first
Item = TypeVar("Item")

MOVES = t.signal_moves.c
SEEN = t.signals_seen.c
STANDING = and_(t.words.c.state == "done", t.words.c.action != "undo")


def chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def word_of(row: Mapping[Any, Any]) -> WordRecord:
    """A row of ``words`` as a record."""
    return WordRecord(**{**dict(row), "at": t.from_instant(row["at"]), "fingerprints": json.loads(row["fingerprints"])})


class WordStatements:
    """The part of ports.Unit that is about words."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._postgresql = connection.dialect.name == "postgresql"

    def _insert(self, table: Table) -> Any:
        return postgresql.insert(table) if self._postgresql else sqlite.insert(table)

    async def word(self, command_id: str) -> WordRecord | None:
        row = (await self._connection.execute(select(t.words).where(t.words.c.command_id == command_id))).mappings().first()
        return word_of(row) if row is not None else None

    async def save_word(self, word: WordRecord) -> None:
        values = {**vars(word), "at": t.to_instant(word.at), "fingerprints": json.dumps(word.fingerprints)}
        statement = self._insert(t.words).values(values)
        await self._connection.execute(statement.on_conflict_do_update(index_elements=["command_id"], set_=values))

    # What the grouping decided

    async def keep_first_decisions(self, items: Sequence[FirstDecision]) -> None:
        """Keeps the decision on a fingerprint's first signal in a report; a later one only where the first says less."""
        wanted = {(item.report_id, item.decision.fingerprint): item for item in reversed(items)}
        c = t.first_decisions.c
        known: dict[tuple[str, str], str] = {}
        for some in chunks(list(wanted)):
            rows = await self._connection.execute(
                select(c.report_id, c.fingerprint, c.rule).where(tuple_(c.report_id, c.fingerprint).in_(some))
            )
            known |= {(report_id, fingerprint): rule for report_id, fingerprint, rule in rows}
        for key, item in wanted.items():
            if key in known and (known[key] != KNOWN or item.decision.rule == KNOWN):
                continue
            values = {
                "report_id": item.report_id, "fingerprint": item.decision.fingerprint, "project": item.project,
                "signal_id": item.signal.id, "kind": item.signal.kind.value, "title": item.signal.title, "rule": item.decision.rule,
                "signal": item.signal.model_dump_json(), "decision": item.decision.model_dump_json(), "at": t.to_instant(item.at),
            }  # fmt: skip
            statement = self._insert(t.first_decisions).values(values)
            await self._connection.execute(statement.on_conflict_do_update(index_elements=["report_id", "fingerprint"], set_=values))

    async def fingerprint_moves(self, project: str, fingerprints: Sequence[str]) -> dict[str, list[FingerprintMove]]:
        """Where words took these fingerprints, in the order of the words. Most fingerprints were never moved, and are absent."""
        c = t.fingerprint_moves.c
        found: dict[str, list[FingerprintMove]] = defaultdict(list)
        for some in chunks(fingerprints):
            rows = await self._connection.execute(
                select(c.fingerprint, c.command_id, c.from_report_id, c.to_report_id, c.at)
                .where(c.project == project, c.fingerprint.in_(some))
                .order_by(c.at, c.command_id)
            )
            for fingerprint, command_id, source, target, at in rows:
                found[fingerprint].append(FingerprintMove(command_id, source, target, t.from_instant(at)))
        return found

    async def move_fingerprints(
        self, command_id: str, project: str, fingerprints: Sequence[str], source_id: str, target_id: str, at: datetime
    ) -> None:
        for some in chunks(fingerprints):
            rows = [
                {
                    "command_id": command_id, "fingerprint": fingerprint, "project": project, "from_report_id": source_id,
                    "to_report_id": target_id, "at": t.to_instant(at),
                }
                for fingerprint in some
            ]  # fmt: skip
            await self._connection.execute(self._insert(t.fingerprint_moves).values(rows).on_conflict_do_nothing())

    async def note_moves(self, moves: dict[str, list[FingerprintMove]]) -> None:
        """Writes down that signals which were told of late went the way of their fingerprint, as if they had been there."""
        rows = [
            {
                "command_id": move.command_id, "signal_id": signal_id, "from_report_id": move.from_report_id,
                "to_report_id": move.to_report_id, "alone": False, "at": t.to_instant(move.at),
            }
            for signal_id, taken in moves.items()
            for move in taken
        ]  # fmt: skip
        for some in chunks(rows):
            await self._connection.execute(self._insert(t.signal_moves).values(some).on_conflict_do_nothing())

    # What people name

    async def named(self, report_id: str, signal_ids: Sequence[str]) -> dict[str, str]:
        """Signal -> fingerprint, of those of the signals that are on the report."""
        found: dict[str, str] = {}
        for some in chunks(signal_ids):
            rows = await self._connection.execute(
                select(SEEN.signal_id, SEEN.fingerprint).where(SEEN.report_id == report_id, SEEN.signal_id.in_(some))
            )
            found |= {row[0]: row[1] for row in rows}
        return found

    async def signals_of(self, report_id: str, fingerprints: Sequence[str]) -> dict[str, int]:
        """Fingerprint -> how many of its signals are on the report; absent with none."""
        found: dict[str, int] = {}
        for some in chunks(fingerprints):
            rows = await self._connection.execute(
                select(SEEN.fingerprint, func.count())
                .where(SEEN.report_id == report_id, SEEN.fingerprint.in_(some))
                .group_by(SEEN.fingerprint)
            )
            found |= {fingerprint: int(number) for fingerprint, number in rows}
        return found

    async def alone_of(self, report_id: str, fingerprints: Sequence[str], limit: int) -> list[str]:
        """Signals of these fingerprints that came to the report alone: to the grouping their fingerprint is elsewhere."""
        found: list[str] = []
        for some in chunks(fingerprints):
            statement = (
                select(SEEN.signal_id)
                .where(SEEN.report_id == report_id, SEEN.fingerprint.in_(some), _moved_by(MOVES.alone))
                .order_by(SEEN.signal_id)
                .limit(limit)
            )
            found += (await self._connection.execute(statement)).scalars().all()
        return found

    # Moving

    async def mark(
        self,
        command_id: str,
        source_id: str,
        target_id: str,
        at: datetime,
        *,
        fingerprints: Sequence[str],
        signal_ids: Sequence[str] | None,
    ) -> None:
        """Writes down which signals of ``source`` a word moves: those named, and all of the fingerprints; all there are for None."""
        here = SEEN.report_id == source_id
        if signal_ids is None:
            alone = case((or_(SEEN.fingerprint == "", _moved_by(MOVES.alone)), True), else_=False)
            await self._mark(command_id, source_id, target_id, at, alone, here)
            return
        for some in chunks(fingerprints):
            await self._mark(command_id, source_id, target_id, at, literal(False), and_(here, SEEN.fingerprint.in_(some)))
        for named in chunks(signal_ids):
            await self._mark(command_id, source_id, target_id, at, literal(True), and_(here, SEEN.signal_id.in_(named)))

    async def mark_back(
        self,
        command_id: str,
        undoes: str,
        project: str,
        source_id: str,
        target_id: str,
        at: datetime,
        *,
        fingerprints: Sequence[str],
        merge: bool,
    ) -> None:
        """Writes down which signals of ``source`` go back when ``undoes`` is taken back.

        Those that it moved and no later word did, and those of the fingerprints that came since, but for those that another word put
        here alone. What it moved with a fingerprint that was led elsewhere since, and does not return now, stays with its fingerprint.
        Of a merge, also those that were told of the report that returns and came before the undo was heard of here.
        """
        here = SEEN.report_id == source_id
        mine = t.signal_moves.alias()
        its = select(mine.c.signal_id).where(mine.c.command_id == undoes, mine.c.signal_id == SEEN.signal_id)
        later = _moved_by(
            MOVES.command_id != undoes,
            t.words.c.action.in_(("split", "move")),
            MOVES.at >= select(func.max(mine.c.at)).where(mine.c.command_id == undoes).scalar_subquery(),
        )
        led = t.fingerprint_moves.alias()
        of_its = and_(led.c.fingerprint == SEEN.fingerprint, led.c.project == project)
        led_elsewhere = its.where(~mine.c.alone, of_its, led.c.at >= mine.c.at, led.c.command_id != undoes)
        returns = select(led.c.command_id).where(of_its, led.c.command_id == command_id)
        stays = or_(later, and_(led_elsewhere.exists(), ~returns.exists()))
        await self._mark(command_id, source_id, target_id, at, literal(True), and_(here, its.exists(), ~stays))
        if merge:
            told_of_it = and_(here, SEEN.told_report_id == target_id, ~its.exists(), ~_moved_by(MOVES.command_id != undoes))
            await self._mark(command_id, source_id, target_id, at, literal(False), told_of_it)
        by_another = _moved_by(MOVES.command_id != undoes, MOVES.alone)
        for some in chunks(fingerprints):
            those = and_(here, SEEN.fingerprint.in_(some), ~by_another, ~its.exists())
            await self._mark(command_id, source_id, target_id, at, literal(False), those)

    async def _mark(
        self, command_id: str, source_id: str, target_id: str, at: datetime, alone: ColumnElement[bool], those: ColumnElement[bool]
    ) -> None:
        columns = ["command_id", "signal_id", "from_report_id", "to_report_id", "alone", "at"]
        chosen = select(
            literal(command_id), SEEN.signal_id, literal(source_id), literal(target_id), alone, literal(t.to_instant(at), t.Instant)
        ).where(those)
        await self._connection.execute(self._insert(t.signal_moves).from_select(columns, chosen).on_conflict_do_nothing())

    async def carried(self, command_id: str) -> Carried:
        """What the marked signals amount to."""
        of = _marked(command_id)
        counted = case((SEEN.counted, 1), else_=0)
        live = case((and_(SEEN.counted, ~SEEN.backfill), 1), else_=0)
        instant = case((SEEN.counted, SEEN.occurred_at))
        weight = case((SEEN.counted, SEEN.weight), else_=0.0)
        total = select(func.count(), func.sum(counted), func.sum(live), func.sum(weight), func.min(instant), func.max(instant)).where(of)
        signals, signal_count, live_count, weighs, first, last = (await self._connection.execute(total)).one()
        if not signals:
            return Carried()
        kinds = await self._connection.execute(select(SEEN.kind, func.count()).where(of).group_by(SEEN.kind))
        releases = await self._connection.execute(
            select(SEEN.release, func.count()).where(of, SEEN.counted, SEEN.release != "").group_by(SEEN.release)
        )
        services = await self._connection.execute(select(SEEN.service).distinct().where(of, SEEN.service != ""))
        return Carried(
            signals=int(signals),
            signal_count=int(signal_count),
            live_count=int(live_count),
            weight=float(weighs),
            kinds={kind: int(number) for kind, number in kinds},
            releases={release: int(number) for release, number in releases},
            services=sorted(services.scalars()),
            first_seen=t.from_instant(first) if first is not None else None,
            last_seen=t.from_instant(last) if last is not None else None,
            title=await self._first_title(command_id),
        )

    async def _first_title(self, command_id: str) -> str:
        first = (
            await self._connection.execute(
                select(SEEN.signal_id, SEEN.told_report_id, SEEN.fingerprint)
                .where(_marked(command_id))
                .order_by(SEEN.occurred_at, SEEN.signal_id)
                .limit(1)
            )
        ).one()
        kept = (await self._connection.execute(select(t.examples.c.signal).where(t.examples.c.signal_id == first[0]))).scalar()
        if kept is not None:
            return str(json.loads(kept)["title"])
        c = t.first_decisions.c
        found = await self._connection.execute(select(c.title).where(c.report_id == first[1], c.fingerprint == first[2]))
        return str(found.scalar() or "")

    async def carry(self, command_id: str, source_id: str, target_id: str, *, everything: bool) -> tuple[int, int]:
        """Moves the marked signals, with counts, people and examples; how many people are on ``source`` and on ``target`` then.

        ``everything`` takes along what was counted of signals that are no longer kept.
        """
        of = _marked(command_id)
        c = t.minute_counts.c
        keys = ["report_id", "minute", "release", "environment"]
        if everything:
            counts = select(literal(target_id), c.minute, c.release, c.environment, c.count).where(c.report_id == source_id)
            await self._add_counts(keys, counts)
            await self._connection.execute(delete(t.minute_counts).where(c.report_id == source_id))
        else:
            for report_id, sign in ((target_id, 1), (source_id, -1)):
                counts = (
                    select(literal(report_id), SEEN.minute, SEEN.release, SEEN.environment, sign * func.count())
                    .where(of, SEEN.counted)
                    .group_by(SEEN.minute, SEEN.release, SEEN.environment)
                )
                await self._add_counts(keys, counts)
            await self._connection.execute(delete(t.minute_counts).where(c.report_id == source_id, c.count <= 0))
        people = (
            select(literal(target_id), t.actors.c.actor).where(t.actors.c.report_id == source_id)
            if everything
            else select(literal(target_id), SEEN.actor).distinct().where(of, SEEN.counted, SEEN.actor != "")
        )
        await self._connection.execute(self._insert(t.actors).from_select(["report_id", "actor"], people).on_conflict_do_nothing())
        marked = select(MOVES.signal_id).where(MOVES.command_id == command_id)
        # Before the signals have moved: who was on the source because of one of these, and is not because of any other.
        gone = select(SEEN.actor).where(of, SEEN.counted)
        await self._connection.execute(update(t.examples).where(t.examples.c.signal_id.in_(marked)).values(report_id=target_id))
        await self._connection.execute(update(t.signals_seen).where(SEEN.signal_id.in_(marked)).values(report_id=target_id))
        leaving = [t.actors.c.report_id == source_id]
        if not everything:
            still = select(SEEN.actor).where(SEEN.report_id == source_id, SEEN.counted, SEEN.actor != "")
            leaving += [t.actors.c.actor.in_(gone), t.actors.c.actor.not_in(still)]
        await self._connection.execute(delete(t.actors).where(*leaving))
        await self._give_examples(command_id, target_id)
        return await self._people(source_id), await self._people(target_id)

    async def _add_counts(self, keys: list[str], counts: Any) -> None:
        statement = self._insert(t.minute_counts).from_select([*keys, "count"], counts)
        await self._connection.execute(
            statement.on_conflict_do_update(index_elements=keys, set_={"count": t.minute_counts.c.count + statement.excluded.count})
        )

    async def _people(self, report_id: str) -> int:
        counted = select(func.count()).select_from(t.actors).where(t.actors.c.report_id == report_id)
        return int((await self._connection.execute(counted)).scalar() or 0)

    async def _give_examples(self, command_id: str, report_id: str) -> None:
        """A report that got signals of which none was kept gets the first of their fingerprints: something to look into."""
        has = (await self._connection.execute(select(t.examples.c.signal_id).where(t.examples.c.report_id == report_id).limit(1))).first()
        if has is not None:
            return
        d = t.first_decisions.c
        columns = ["signal_id", "report_id", "slot", "kind", "occurred_at", "signal", "decision"]
        firsts = (
            select(d.signal_id, literal(report_id), literal("first"), d.kind, SEEN.occurred_at, d.signal, d.decision)
            .where(SEEN.signal_id == d.signal_id, _marked(command_id))
            .order_by(SEEN.occurred_at, SEEN.signal_id)
            .limit(EXAMPLES_GIVEN_MAX)
        )
        await self._connection.execute(self._insert(t.examples).from_select(columns, firsts).on_conflict_do_nothing())

    async def forget_marks(self, command_id: str, undoes: str) -> None:
        """What an undo moved back need not be remembered: an undo is not taken back.

        Nor where those signals went after the word that it undoes: they were never there, and no later undo may find them by it.
        """
        mine, led = t.signal_moves.alias(), t.fingerprint_moves.c
        since = select(func.max(mine.c.at)).where(mine.c.command_id == undoes).scalar_subquery()
        led_since = select(func.max(led.at)).where(led.command_id == undoes).scalar_subquery()
        back = select(mine.c.signal_id).where(mine.c.command_id == command_id)
        # None that a subquery reads is deleted with it: SQLite reads while it deletes.
        later = and_(MOVES.command_id.not_in((command_id, undoes)), MOVES.at >= func.coalesce(since, led_since))
        await self._connection.execute(delete(t.signal_moves).where(MOVES.signal_id.in_(back), later))
        await self._connection.execute(delete(t.signal_moves).where(MOVES.command_id == command_id))

    async def kept(self, report_id: str, signal_count: int) -> Kept:
        """What is still known of the signals of a report that counted ``signal_count``."""
        here = (SEEN.report_id == report_id, SEEN.counted)
        number = (await self._connection.execute(select(func.count()).select_from(t.signals_seen).where(*here))).scalar() or 0
        services = await self._connection.execute(select(SEEN.service).distinct().where(SEEN.report_id == report_id, SEEN.service != ""))
        ends = [
            (await self._connection.execute(select(SEEN.occurred_at).where(*here).order_by(order).limit(1))).scalar()
            for order in (SEEN.occurred_at, SEEN.occurred_at.desc())
        ]
        first, last = (t.from_instant(end) if end is not None else None for end in ends)
        return Kept(int(number) >= signal_count, sorted(services.scalars()), first, last)


def _marked(command_id: str) -> ColumnElement[bool]:
    return SEEN.signal_id.in_(select(MOVES.signal_id).where(MOVES.command_id == command_id))


def _moved_by(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a word that stands moved the signal, with these conditions on it and on its move."""
    return (
        select(MOVES.signal_id)
        .join(t.words, t.words.c.command_id == MOVES.command_id)
        .where(MOVES.signal_id == SEEN.signal_id, STANDING, *conditions)
        .correlate(t.signals_seen)
        .exists()
    )


__all__ = ["STANDING", "WordStatements", "chunks", "word_of"]
