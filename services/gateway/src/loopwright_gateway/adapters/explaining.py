"""Why signals are together, and what people said of it, as the inbox reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loopwright_common.contracts.reports import GroupingDecision
from loopwright_common.contracts.signals import Signal
from sqlalchemy import and_, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from loopwright_gateway.adapters import tables as t
from loopwright_gateway.adapters.store import SqlStore
from loopwright_gateway.adapters.words import KNOWN, STANDING, chunks, word_of
from loopwright_gateway.views import Explanation, FingerprintView, Moved, SignalView, WordView

WORDS_MAX = 1_000
FINGERPRINTS_SHOWN_MAX = 1_000
SEEN, MOVES, FIRST, WORDS = t.signals_seen.c, t.signal_moves.c, t.first_decisions.c, t.words.c
Row = Mapping[Any, Any]


class Explaining:
    """The part of ports.Inbox that is about the grouping."""

    _store: SqlStore

    async def explain(
        self, report_id: str, fingerprint: str | None, after: list[Any] | None, limit: int
    ) -> tuple[list[Explanation], list[Any] | None]:
        """The signals of a report, newest first; where the next page begins."""
        statement = select(t.signals_seen).where(SEEN.report_id == report_id)
        if fingerprint is not None:
            statement = statement.where(SEEN.fingerprint == fingerprint)
        if after is not None:
            statement = statement.where(or_(SEEN.occurred_at < after[0], and_(SEEN.occurred_at == after[0], SEEN.signal_id < after[1])))
        statement = statement.order_by(SEEN.occurred_at.desc(), SEEN.signal_id.desc()).limit(limit + 1)
        async with self._store.read() as connection:
            rows = (await connection.execute(statement)).mappings().all()
            page = rows[:limit]
            following = [page[-1]["occurred_at"], page[-1]["signal_id"]] if len(rows) > limit else None
            examples = await _examples(connection, [row["signal_id"] for row in page])
            firsts = await _first_decisions(connection, {(row["told_report_id"], row["fingerprint"]) for row in page})
            moved = await _moved(connection, page)
        return [_explanation(row, examples, firsts, moved) for row in page], following

    async def fingerprints(self, report_id: str, after: list[Any] | None, limit: int) -> tuple[list[FingerprintView], list[Any] | None]:
        """The fingerprints of a report, the one seen last first; where the next page begins."""
        last = func.max(SEEN.occurred_at)
        statement = (
            select(
                SEEN.fingerprint, func.count(), func.min(SEEN.occurred_at), last, func.max(SEEN.told_report_id), func.max(SEEN.kind),
                func.max(SEEN.signal_id), func.max(t.examples.c.signal_id),
            )
            .outerjoin(t.examples, t.examples.c.signal_id == SEEN.signal_id)
            .where(SEEN.report_id == report_id)
            .group_by(SEEN.fingerprint)
            .order_by(last.desc(), SEEN.fingerprint.desc())
            .limit(limit + 1)
        )  # fmt: skip
        if after is not None:
            statement = statement.having(or_(last < after[0], and_(last == after[0], SEEN.fingerprint < after[1])))
        async with self._store.read() as connection:
            rows = (await connection.execute(statement)).all()
            page = rows[:limit]
            following = [page[-1][3], page[-1][0]] if len(rows) > limit else None
            firsts = await _first_decisions(connection, {(told, fingerprint) for fingerprint, _, _, _, told, _, _, _ in page})
            examples = await _examples(connection, [example for *_, example in page if example])
        return [_fingerprint(row, firsts, examples) for row in page], following

    async def words(self, report_id: str) -> list[WordView]:
        """What people said of a report, newest first."""
        about = or_(WORDS.report_id == report_id, WORDS.other_report_id == report_id, WORDS.new_report_id == report_id)
        statement = select(t.words).where(about).order_by(WORDS.at.desc(), WORDS.command_id.desc()).limit(WORDS_MAX)
        async with self._store.read() as connection:
            words = [word_of(row) for row in (await connection.execute(statement)).mappings()]
        shown: list[WordView] = []
        for word in words:
            values = vars(word) | {"fingerprints": word.fingerprints[:FINGERPRINTS_SHOWN_MAX], "undoable": word.undoable}
            shown.append(WordView.model_validate({name: values[name] for name in WordView.model_fields}))
        return shown


async def _examples(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, tuple[Signal, GroupingDecision]]:
    c = t.examples.c
    rows = await connection.execute(select(c.signal_id, c.signal, c.decision).where(c.signal_id.in_(ids)))
    return {
        signal_id: (Signal.model_validate_json(signal), GroupingDecision.model_validate_json(decision))
        for signal_id, signal, decision in rows
    }


async def _first_decisions(connection: AsyncConnection, keys: set[tuple[str, str]]) -> dict[tuple[str, str], tuple[Row, GroupingDecision]]:
    """(report told of, fingerprint) -> the row and the decision on the fingerprint's first signal, there or, where that was known already,
    where it was first of all."""
    columns = (FIRST.report_id, FIRST.fingerprint, FIRST.project, FIRST.kind, FIRST.title, FIRST.rule, FIRST.decision)
    found: dict[tuple[str, str], Row] = {}
    for some in chunks(sorted(keys)):
        rows = await connection.execute(select(*columns).where(tuple_(FIRST.report_id, FIRST.fingerprint).in_(some)))
        found |= {(row["report_id"], row["fingerprint"]): row for row in rows.mappings()}
    known = {(row["project"], row["fingerprint"]) for row in found.values() if row["rule"] == KNOWN}
    origin: dict[tuple[str, str], Row] = {}
    for those in chunks(sorted(known)):
        statement = select(*columns).where(tuple_(FIRST.project, FIRST.fingerprint).in_(those), FIRST.rule != KNOWN)
        for first in (await connection.execute(statement.order_by(FIRST.at.desc(), FIRST.report_id))).mappings():
            origin[first["project"], first["fingerprint"]] = first  # the earliest stays
    result: dict[tuple[str, str], tuple[Row, GroupingDecision]] = {}
    for key, row in found.items():
        said = origin.get((row["project"], row["fingerprint"]), row) if row["rule"] == KNOWN else row
        result[key] = (row, GroupingDecision.model_validate_json(said["decision"]))
    return result


async def _moved(connection: AsyncConnection, page: Sequence[Row]) -> dict[str, Moved]:
    """Signal -> the latest standing word that moved it, or that moved its fingerprint to where it was then told of."""
    columns = (WORDS.command_id, WORDS.action, WORDS.actor, WORDS.reason, WORDS.at)
    ids = [row["signal_id"] for row in page]
    found: dict[str, Moved] = {}
    by_signal = (
        select(MOVES.signal_id, MOVES.from_report_id, *columns)
        .join(t.words, WORDS.command_id == MOVES.command_id)
        .where(MOVES.signal_id.in_(ids), STANDING)
        .order_by(MOVES.at, MOVES.command_id)
    )
    for row in (await connection.execute(by_signal)).mappings():
        found[row["signal_id"]] = _moved_view(row)
    c = t.fingerprint_moves.c
    keys = {(row["told_report_id"], row["fingerprint"]) for row in page if row["signal_id"] not in found}
    by_fingerprint: dict[tuple[str, str], Moved] = {}
    for some in chunks(sorted(keys)):
        statement = (
            select(c.fingerprint, c.to_report_id, c.from_report_id, *columns)
            .join(t.words, WORDS.command_id == c.command_id)
            .where(tuple_(c.to_report_id, c.fingerprint).in_(some), STANDING)
            .order_by(c.at, c.command_id)
        )
        for row in (await connection.execute(statement)).mappings():
            by_fingerprint[row["to_report_id"], row["fingerprint"]] = _moved_view(row)
    for signal in page:
        word = by_fingerprint.get((signal["told_report_id"], signal["fingerprint"]))
        if word is not None and signal["signal_id"] not in found:
            found[signal["signal_id"]] = word
    return found


def _moved_view(row: Row) -> Moved:
    return Moved(
        command_id=row["command_id"], action=row["action"], actor=row["actor"], reason=row["reason"], at=t.from_instant(row["at"]),
        from_report_id=row["from_report_id"],
    )  # fmt: skip


def _explanation(
    row: Row,
    examples: Mapping[str, tuple[Signal, GroupingDecision]],
    firsts: Mapping[tuple[str, str], tuple[Row, GroupingDecision]],
    moved: Mapping[str, Moved],
) -> Explanation:
    example, own = examples.get(row["signal_id"], (None, None))
    first = firsts.get((row["told_report_id"], row["fingerprint"]))
    decision = own if own is not None and (own.rule != KNOWN or first is None) else first[1] if first else None
    return Explanation(
        signal=SignalView(
            id=row["signal_id"], kind=row["kind"], title=example.title if example else first[0]["title"] if first else "",
            service=row["service"], release=row["release"], environment=row["environment"],
            occurred_at=t.from_instant(row["occurred_at"]), weight=row["weight"], backfill=row["backfill"], counted=row["counted"],
            source=example.source if example else None,
        ),
        fingerprint=row["fingerprint"],
        decision=decision,
        moved=moved.get(row["signal_id"]),
        example=example,
    )  # fmt: skip


def _fingerprint(
    row: Sequence[Any],
    firsts: Mapping[tuple[str, str], tuple[Row, GroupingDecision]],
    examples: Mapping[str, tuple[Signal, GroupingDecision]],
) -> FingerprintView:
    fingerprint, signals, first_seen, last_seen, told, kind, some, example = row
    first = firsts.get((told, fingerprint))
    kept = examples.get(example) if example else None
    decision = first[1] if first else kept[1] if kept else None
    return FingerprintView(
        fingerprint=fingerprint,
        title=first[0]["title"] if first else kept[0].title if kept else "",
        kind=first[0]["kind"] if first else kind,
        rule=decision.rule if decision else "",
        reason=decision.reason if decision else "",
        similar=list(decision.similar) if decision else [],
        signals=signals,
        first_seen=t.from_instant(first_seen),
        last_seen=t.from_instant(last_seen),
        example=example or some,
    )
