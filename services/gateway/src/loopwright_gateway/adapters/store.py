"""The store on SQLAlchemy: SQLite with WAL and synchronous=FULL on one machine, PostgreSQL in a cluster. The same statements for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from loopwright_common.contracts.reports import MinuteCount, ReportState
from sqlalchemy import ColumnElement, Table, and_, case, delete, event, func, or_, select, text, tuple_
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from loopwright_gateway.adapters import tables as t
from loopwright_gateway.adapters.unit import OPEN_STATES, SqlUnit, outbox_item
from loopwright_gateway.ports import Standing
from loopwright_gateway.records import OutboxItem

# Any number: it names the one lock that writers of this schema take, so that two replicas decide one after the other as one process does.
WRITER_LOCK = 7_460_021
ROWS_PER_STEP = 2_000  # removed in one transaction: some 20 ms on a laptop's SQLite, which a batch of signals may well wait
REPORTS_PER_STEP = 200


class SqlStore:
    """One database. Make it with ``open``; ``close`` when done."""

    def __init__(self, writing: AsyncEngine, reading: AsyncEngine) -> None:
        self._writing = writing
        self.reading = reading
        self._lock = asyncio.Lock()
        self.postgresql = writing.dialect.name == "postgresql"
        self.committed = asyncio.Condition()

    @classmethod
    def open(cls, url: str) -> SqlStore:
        """Connects lazily. ``url`` is a SQLAlchemy URL of sqlite+aiosqlite or postgresql+asyncpg."""
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql":
            engine = create_async_engine(parsed, pool_size=10, pool_pre_ping=True)
            return cls(engine, engine)
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        writing = create_async_engine(parsed, pool_size=1, max_overflow=0)
        reading = create_async_engine(parsed, pool_size=4)
        _set_up_sqlite(writing, begin="BEGIN IMMEDIATE")
        _set_up_sqlite(reading, begin="BEGIN")
        return cls(writing, reading)

    async def close(self) -> None:
        await self._writing.dispose()
        await self.reading.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqlUnit]:
        """One transaction, alone among writers; committed when the block ends, rolled back when it raises."""
        async with self._lock:
            async with self._writing.begin() as connection:
                if self.postgresql:
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": WRITER_LOCK})
                unit = SqlUnit(connection)
                yield unit
            for call in unit.calls_after_commit:
                call()
            async with self.committed:
                self.committed.notify_all()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection that only reads, on one snapshot."""
        async with self.reading.connect() as connection:
            yield connection

    async def migrate(self) -> None:
        """Brings the tables up to date."""
        from loopwright_gateway.migrate import upgrade

        async with self._writing.begin() as connection:
            if self.postgresql:  # replicas that start together migrate one after the other
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": WRITER_LOCK})
            await connection.run_sync(upgrade)

    async def ready(self) -> bool:
        try:
            async with asyncio.timeout(3), self.reading.connect() as connection:
                await connection.execute(select(func.count()).select_from(t.projects))
        except Exception:  # whatever the driver raises, the answer to the question is no
            return False
        return True

    async def rates(
        self, project: str, report_id: str | None, services: Sequence[str], environment: str, start: datetime, end: datetime, limit: int
    ) -> tuple[list[MinuteCount], list[dict[str, Any]], bool]:
        """Signals per minute and release, and exposure per minute, service, release and unit, in [start, end); whether a limit cut it."""
        low, high = t.to_instant(start), t.to_instant(end)
        counts = t.minute_counts.c
        counted = (
            select(counts.minute, counts.release, func.sum(counts.count))
            .where(counts.report_id == report_id, counts.minute >= low, counts.minute < high)
            .group_by(counts.minute, counts.release)
            .order_by(counts.minute, counts.release)
            .limit(limit + 1)
        )
        used = t.exposure.c
        exposed = (
            select(used.minute, used.service, used.release, used.unit, func.sum(used.count), func.sum(used.errored))
            .where(used.project == project, used.service.in_(services), used.minute >= low, used.minute < high)
            .group_by(used.minute, used.service, used.release, used.unit)
            .order_by(used.minute)
            .limit(limit + 1)
        )
        if environment:
            counted = counted.where(counts.environment == environment)
            exposed = exposed.where(used.environment == environment)
        async with self.read() as connection:
            signals = (await connection.execute(counted)).all() if report_id else []
            exposure = (await connection.execute(exposed)).all() if services else []
        truncated = len(signals) > limit or len(exposure) > limit
        return (
            [MinuteCount(minute=t.from_instant(minute), release=release, count=int(number)) for minute, release, number in signals[:limit]],
            [
                {"minute": t.from_instant(m), "service": s, "release": r, "unit": u, "count": int(c), "errored": int(e)}
                for m, s, r, u, c, e in exposure[:limit]
            ],
            truncated,
        )

    async def outbox(self, limit: int) -> list[OutboxItem]:
        """What is still to be sent, oldest first."""
        async with self.read() as connection:
            rows = await connection.execute(select(t.outbox).order_by(t.outbox.c.id).limit(limit))
            return [outbox_item(row) for row in rows.mappings()]

    async def sent(self, ids: Sequence[int]) -> None:
        """Forgets what was sent."""
        async with self._lock, self._writing.begin() as connection:
            await connection.execute(delete(t.outbox).where(t.outbox.c.id.in_(ids)))

    async def standing(self, now: datetime) -> Standing:
        """How many reports and changes are in each state, and what waits to be sent."""
        at, changes = t.to_instant(now), t.changes.c
        async with self.read() as connection:
            reports = (await connection.execute(select(t.reports.c.state, func.count()).group_by(t.reports.c.state))).all()
            opened = (
                await connection.execute(
                    select(changes.state, func.count(), func.min(changes.created_at))
                    .where(changes.state.in_(OPEN_STATES))
                    .group_by(changes.state)
                )
            ).all()
            items, oldest = (
                await connection.execute(
                    # Rows that the release before wrote have no time.
                    select(func.count(), func.min(case((t.outbox.c.decided_at > 0, t.outbox.c.decided_at))))
                )
            ).one()
        none = dict.fromkeys(OPEN_STATES, 0)
        return Standing(
            reports={state.value: 0 for state in ReportState} | {state: int(count) for state, count in reports},
            changes=none | {state: int(count) for state, count, _ in opened},
            oldest_change_seconds=none | {state: max(0, at - created) / 1_000 for state, _, created in opened},
            outbox_items=int(items),
            outbox_oldest_seconds=max(0, at - oldest) / 1_000 if oldest else 0.0,
        )

    async def prune(self, seen_before: datetime, rates_before: datetime, events_kept: int, rows_per_step: int = ROWS_PER_STEP) -> int:
        """Forgets what is old. Returns the rows removed.

        That is: signal and exposure ids seen, and moves of signals made, before ``seen_before``, counts and exposure of minutes before
        ``rates_before``, and all but the newest events. Each step is a transaction of its own that removes at most ``rows_per_step`` rows:
        the first run after a long time, or after history was loaded, would otherwise keep all who write waiting.
        """
        before = t.to_instant(seen_before)
        removed = await self._remove(t.signals_seen, t.signals_seen.c.seen_at < before, rows_per_step)
        removed += await self._remove(t.exposure_seen, t.exposure_seen.c.seen_at < before, rows_per_step)
        # What a word moved was counted before the word was said: nothing is left of it that could go back.
        removed += await self._remove(t.signal_moves, t.signal_moves.c.at < before, rows_per_step)
        minutes = t.to_instant(rates_before)
        async for reports in self._reports_with_counts_before(minutes):
            counts = t.minute_counts.c
            removed += await self._remove(t.minute_counts, and_(counts.report_id.in_(reports), counts.minute < minutes), rows_per_step)
        async for project, service in self._services_with_exposure():
            used = t.exposure.c
            mine = and_(used.project == project, used.service == service, used.minute < minutes)
            removed += await self._remove(t.exposure, mine, rows_per_step)
        async with self.read() as connection:
            newest = (await connection.execute(select(func.max(t.events.c.id)))).scalar() or 0
        return removed + await self._remove(t.events, t.events.c.id <= newest - events_kept, rows_per_step)

    async def _remove(self, table: Table, condition: ColumnElement[bool], rows_per_step: int) -> int:
        """Deletes the rows, some at a time; how many they were."""
        key = tuple_(*table.primary_key.columns)
        some = delete(table).where(key.in_(select(*table.primary_key.columns).where(condition).limit(rows_per_step)))
        removed = 0
        while True:
            async with self._lock, self._writing.begin() as connection:
                if self.postgresql:  # alone among writers, as everybody: two replicas that prune would lock rows in different orders
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": WRITER_LOCK})
                step = int((await connection.execute(some)).rowcount)
            removed += step
            if step < rows_per_step:
                return removed
            await asyncio.sleep(0)  # those who wait for the lock come first

    async def _reports_with_counts_before(self, minute: int) -> AsyncIterator[list[str]]:
        """Reports, some at a time. The counts' key begins with the report, and an index by minute would cost each count its price."""
        c, counts = t.reports.c, t.minute_counts.c
        after = ""
        while True:
            has = select(counts.count).where(counts.report_id == c.id, counts.minute < minute).exists()
            page = select(c.id).where(c.id > after, c.first_seen < minute, has).order_by(c.id).limit(REPORTS_PER_STEP)
            async with self.read() as connection:
                found = list((await connection.execute(page)).scalars())
            if found:
                yield found
                after = found[-1]
            if len(found) < REPORTS_PER_STEP:
                return

    async def _services_with_exposure(self) -> AsyncIterator[tuple[str, str]]:
        """(project, service), each found by one look into the key: there are few of them among very many minutes."""
        c = t.exposure.c
        after = ("", "")
        while True:
            beyond = or_(c.project > after[0], and_(c.project == after[0], c.service > after[1]))
            async with self.read() as connection:
                found = (
                    await connection.execute(select(c.project, c.service).where(beyond).order_by(c.project, c.service).limit(1))
                ).first()
            if found is None:
                return
            after = (found[0], found[1])
            yield after


def _set_up_sqlite(engine: AsyncEngine, begin: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        # The driver's own transactions begin deferred and fail late, when two readers both want to write.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=15000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)
