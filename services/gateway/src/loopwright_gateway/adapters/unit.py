"""One transaction's statements. Upserts are those that SQLite and PostgreSQL share (INSERT .. ON CONFLICT)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from loopwright_common.contracts.investigations import Cost, Investigation
from loopwright_common.contracts.measurements import Measurement, MeasurementStarted
from loopwright_common.contracts.reports import GroupingDecision, ReportState
from loopwright_common.contracts.signals import Deploy, Exposure, Signal
from sqlalchemy import Table, case, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from loopwright_gateway.adapters import tables as t
from loopwright_gateway.adapters.words import WordStatements
from loopwright_gateway.domain import priority_rank
from loopwright_gateway.promotion import MinuteWeight
from loopwright_gateway.records import RELEASES_MAX, ChangeRecord, OutboxItem, Report, SeenSignal, TimelineEntry

FIRST_EXAMPLES = 10
EXAMPLES_PER_KIND = 5
RECENT_EXAMPLES = 10
OPEN_STATES = ("requested", "working", "in_review")


def report_of(row: Mapping[Any, Any]) -> Report:
    """A row of ``reports`` as a record."""
    rank = row["priority_rank"]
    return Report(
        id=row["id"],
        project=row["project"],
        title=row["title"],
        state=ReportState(row["state"]),
        first_seen=t.from_instant(row["first_seen"]),
        last_seen=t.from_instant(row["last_seen"]),
        opened_at=t.from_instant(row["opened_at"]),
        updated_at=t.from_instant(row["updated_at"]),
        priority=f"P{rank}" if rank < 5 else None,
        snoozed_until=t.from_instant(row["snoozed_until"]) if row["snoozed_until"] is not None else None,
        services=json.loads(row["services"]),
        kinds=json.loads(row["kinds"]),
        releases=json.loads(row["releases"]),
        input=json.loads(row["input"]),
        **{name: row[name] for name in _SAME},
    )


_SAME = (
    "question", "state_reason", "weight", "signal_count", "live_count", "people_count", "attempt", "change_attempt", "timeline_sequence",
    "version", "recurrence_of", "merged_into", "snoozed_at_count", "snooze_signals",
)  # fmt: skip


def change_of(row: Mapping[Any, Any]) -> ChangeRecord:
    """A row of ``changes`` as a record."""
    values = dict(row)
    for name in ("fact_at", "created_at", "updated_at"):
        values[name] = t.from_instant(values[name])
    values["feedback"] = json.loads(values["feedback"])
    return ChangeRecord(**values)


def outbox_item(row: Mapping[Any, Any]) -> OutboxItem:
    return OutboxItem(
        row["kind"],
        json.loads(row["tokens"]),
        row["message_id"],
        row["about"],
        row["payload"],
        row["id"],
        row["traceparent"],
        t.from_instant(row["decided_at"]),
    )


class SqlUnit(WordStatements):
    """Implements ports.Unit on one connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        super().__init__(connection)
        self.calls_after_commit: list[Callable[[], None]] = []

    async def execute(self, statement: Any) -> int:
        """Runs a statement of another adapter in this transaction; how many rows it touched."""
        return int((await self._connection.execute(statement)).rowcount)

    async def _add(self, table: Table, values: dict[str, Any]) -> bool:
        """Inserts a row unless its key is there; whether it was inserted."""
        result = await self._connection.execute(self._insert(table).values(values).on_conflict_do_nothing())
        return bool(result.rowcount == 1)

    # Reports

    async def report(self, report_id: str) -> Report | None:
        row = (await self._connection.execute(select(t.reports).where(t.reports.c.id == report_id))).mappings().first()
        return report_of(row) if row is not None else None

    async def save_report(self, report: Report) -> None:
        """Writes a report, new or known."""
        releases = dict(sorted(report.releases.items(), key=lambda item: -item[1])[:RELEASES_MAX])
        values = {
            "id": report.id,
            "project": report.project,
            "title": report.title,
            "state": report.state.value,
            "priority_rank": priority_rank(report.priority),
            "first_seen": t.to_instant(report.first_seen),
            "last_seen": t.to_instant(report.last_seen),
            "opened_at": t.to_instant(report.opened_at),
            "updated_at": t.to_instant(report.updated_at),
            "snoozed_until": t.to_instant(report.snoozed_until) if report.snoozed_until else None,
            "services": json.dumps(report.services),
            "kinds": json.dumps(report.kinds),
            "releases": json.dumps(releases),
            "input": json.dumps(report.input),
            **{name: getattr(report, name) for name in _SAME},
        }
        statement = self._insert(t.reports).values(values)
        await self._connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))

    async def add_timeline(self, report: Report, entry: TimelineEntry) -> bool:
        """Adds a line unless one with the same cause is there."""
        return await self._add(
            t.timeline,
            {
                "report_id": report.id,
                "sequence": entry.sequence,
                "project": report.project,
                "kind": entry.kind,
                "from_state": entry.from_state.value if entry.from_state else None,
                "to_state": entry.to_state.value if entry.to_state else None,
                "actor": entry.actor,
                "reason": entry.reason,
                "cause": entry.cause,
                "at": t.to_instant(entry.at),
            },
        )

    async def has_cause(self, report_id: str, cause: str) -> bool:
        found = select(t.timeline.c.sequence).where(t.timeline.c.report_id == report_id, t.timeline.c.cause == cause)
        return (await self._connection.execute(found)).first() is not None

    # Counting

    async def unseen(self, signal_ids: Sequence[str]) -> set[str]:
        """Those of the ids that were never counted."""
        known = select(t.signals_seen.c.signal_id).where(t.signals_seen.c.signal_id.in_(signal_ids))
        return set(signal_ids) - set((await self._connection.execute(known)).scalars())

    async def remember(self, signals: Sequence[SeenSignal], at: datetime) -> None:
        rows = [
            {
                **vars(signal), "minute": t.to_instant(signal.minute), "seen_at": t.to_instant(at),
                "occurred_at": t.to_instant(signal.occurred_at or signal.minute),
            }
            for signal in signals
        ]  # fmt: skip
        if rows:
            await self._connection.execute(t.signals_seen.insert(), rows)

    async def count(self, report_id: str, counts: dict[tuple[datetime, str, str], int]) -> None:
        """Adds to the counts per (minute, release, environment); negative numbers take away."""
        for (minute, release, environment), number in counts.items():
            statement = self._insert(t.minute_counts).values(
                report_id=report_id, minute=t.to_instant(minute), release=release, environment=environment, count=number
            )
            await self._connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["report_id", "minute", "release", "environment"],
                    set_={"count": t.minute_counts.c.count + statement.excluded.count},
                )
            )

    async def add_actors(self, report_id: str, actors: Iterable[str]) -> int:
        """Remembers who was hit; how many of them are new to the report."""
        new = 0
        for actor in sorted(set(actors)):
            new += await self._add(t.actors, {"report_id": report_id, "actor": actor})
        return new

    async def keep_example(self, report_id: str, signal: Signal, decision: GroupingDecision) -> None:
        """Keeps a bounded, varied choice: the first ten, the first five of each kind, and the ten most recent."""
        c = t.examples.c
        totals = (
            await self._connection.execute(select(c.kind, c.slot, func.count()).where(c.report_id == report_id).group_by(c.kind, c.slot))
        ).all()
        firsts = sum(number for _, slot, number in totals if slot == "first")
        of_kind = sum(number for kind, slot, number in totals if kind == signal.kind.value and slot != "recent")
        slot = "first" if firsts < FIRST_EXAMPLES else "kind" if of_kind < EXAMPLES_PER_KIND else "recent"
        await self._add(
            t.examples,
            {
                "signal_id": signal.id,
                "report_id": report_id,
                "slot": slot,
                "kind": signal.kind.value,
                "occurred_at": t.to_instant(signal.occurred_at),
                "signal": signal.model_dump_json(),
                "decision": decision.model_dump_json(),
            },
        )
        recent = sum(number for _, kept, number in totals if kept == "recent")
        if slot == "recent" and recent >= RECENT_EXAMPLES:
            oldest = (
                select(c.signal_id)
                .where(c.report_id == report_id, c.slot == "recent")
                .order_by(c.occurred_at, c.signal_id)
                .limit(recent + 1 - RECENT_EXAMPLES)
            )
            await self._connection.execute(delete(t.examples).where(c.signal_id.in_(oldest.scalar_subquery())))

    async def examples(self, report_id: str, limit: int) -> list[tuple[Signal, GroupingDecision]]:
        """The kept examples, each kind's first ones before more of the same, oldest first within."""
        c = t.examples.c
        rows = (
            await self._connection.execute(
                select(c.kind, c.signal, c.decision).where(c.report_id == report_id).order_by(c.occurred_at, c.signal_id)
            )
        ).all()
        turn: dict[str, int] = {}
        ordered = []
        for index, (kind, signal, decision) in enumerate(rows):
            turn[kind] = turn.get(kind, 0) + 1
            ordered.append((turn[kind], index, signal, decision))
        return [
            (Signal.model_validate_json(signal), GroupingDecision.model_validate_json(decision))
            for _, _, signal, decision in sorted(ordered)[:limit]
        ]

    async def minute_weights(self, report_id: str, kinds: Sequence[str]) -> list[MinuteWeight]:
        """What the counted signals of these kinds weigh, per minute and kind, in the order of time."""
        c = t.signals_seen.c
        statement = (
            select(c.minute, c.kind, func.sum(c.weight), func.sum(case((c.backfill, 0), else_=1)))
            .where(c.report_id == report_id, c.kind.in_(kinds), c.counted)
            .group_by(c.minute, c.kind)
            .order_by(c.minute, c.kind)
        )
        rows = (await self._connection.execute(statement)).all()
        return [MinuteWeight(t.from_instant(minute), kind, float(weight), int(live)) for minute, kind, weight, live in rows]

    # Exposure and deploys

    async def add_exposure(self, items: Sequence[Exposure], at: datetime) -> int:
        """Adds what was not added before; how many items that were."""
        added = 0
        for item in items:
            if not await self._add(t.exposure_seen, {"exposure_id": item.id, "seen_at": t.to_instant(at)}):
                continue
            added += 1
            minute = item.minute.replace(second=0, microsecond=0)
            statement = self._insert(t.exposure).values(
                project=item.project, service=item.service, minute=t.to_instant(minute), release=item.release,
                environment=item.environment, unit=item.unit, count=item.count, errored=item.errored,
            )  # fmt: skip
            await self._connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["project", "service", "minute", "release", "environment", "unit"],
                    set_={
                        "count": t.exposure.c.count + statement.excluded.count,
                        "errored": t.exposure.c.errored + statement.excluded.errored,
                    },
                )
            )
        return added

    async def add_deploy(self, deploy: Deploy) -> bool:
        at = t.to_instant(deploy.deployed_at)
        row = {"id": deploy.id, "project": deploy.project, "service": deploy.service, "deployed_at": at, "body": deploy.model_dump_json()}
        return await self._add(t.deploys, row)

    async def deploys(self, project: str, services: Sequence[str], limit: int, start: datetime | None = None) -> list[Deploy]:
        """The newest deploys of the services, newest first."""
        c = t.deploys.c
        statement = select(c.body).where(c.project == project, c.service.in_(services)).order_by(c.deployed_at.desc(), c.id).limit(limit)
        if start is not None:
            statement = statement.where(c.deployed_at >= t.to_instant(start))
        return [Deploy.model_validate_json(body) for body in (await self._connection.execute(statement)).scalars()]

    # Investigations, changes, measurements, usage

    async def add_investigation(self, investigation: Investigation) -> bool:
        return await self._add(
            t.investigations,
            {
                "id": investigation.id,
                "report_id": investigation.report_id,
                "attempt": investigation.attempt,
                "suspect": investigation.suspects[0].commit if investigation.suspects else None,
                "body": investigation.model_dump_json(),
                "at": t.to_instant(investigation.completed_at),
            },
        )

    async def investigation(self, report_id: str) -> Investigation | None:
        """The newest attempt's."""
        c = t.investigations.c
        statement = select(c.body).where(c.report_id == report_id).order_by(c.attempt.desc(), c.at.desc()).limit(1)
        body = (await self._connection.execute(statement)).scalar()
        return Investigation.model_validate_json(body) if body is not None else None

    async def change(self, change_id: str) -> ChangeRecord | None:
        row = (await self._connection.execute(select(t.changes).where(t.changes.c.id == change_id))).mappings().first()
        return change_of(row) if row is not None else None

    async def save_change(self, change: ChangeRecord) -> None:
        values = {
            **vars(change),
            "feedback": json.dumps(change.feedback),
            "fact_at": t.to_instant(change.fact_at),
            "created_at": t.to_instant(change.created_at),
            "updated_at": t.to_instant(change.updated_at),
        }
        statement = self._insert(t.changes).values(values)
        await self._connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))

    async def latest_change(self, report_id: str) -> ChangeRecord | None:
        statement = select(t.changes).where(t.changes.c.report_id == report_id).order_by(t.changes.c.attempt.desc()).limit(1)
        row = (await self._connection.execute(statement)).mappings().first()
        return change_of(row) if row is not None else None

    async def changes_since(self, project: str, since: datetime) -> int:
        c = t.changes.c
        statement = select(func.count()).select_from(t.changes).where(c.project == project, c.created_at >= t.to_instant(since))
        return int((await self._connection.execute(statement)).scalar() or 0)

    async def open_changes(self, project: str, repository: str) -> int:
        c = t.changes.c
        statement = (
            select(func.count()).select_from(t.changes).where(c.project == project, c.repository == repository, c.state.in_(OPEN_STATES))
        )
        return int((await self._connection.execute(statement)).scalar() or 0)

    async def open_change_for(self, project: str, repository: str, suspect: str) -> str | None:
        """The report whose open or merged change already takes back ``suspect``."""
        c = t.changes.c
        states = (*OPEN_STATES, "merged")
        statement = (
            select(c.report_id).where(c.project == project, c.repository == repository, c.suspect == suspect, c.state.in_(states)).limit(1)
        )
        found = (await self._connection.execute(statement)).scalar()
        return str(found) if found is not None else None

    async def usd_since(self, project: str, since: datetime) -> float:
        c = t.usage.c
        statement = select(func.sum(c.usd)).where(c.project == project, c.at >= t.to_instant(since))
        return float((await self._connection.execute(statement)).scalar() or 0.0)

    async def add_usage(
        self, id: str, project: str, report_id: str, stage: str, cost: Cost, at: datetime, *, pull_requests: int = 0
    ) -> bool:
        """Meters once: the same id is counted the first time only."""
        row = {
            "id": id, "project": project, "report_id": report_id, "stage": stage, "month": at.strftime("%Y-%m"),
            "pull_requests": pull_requests, "cost": cost.model_dump_json(), "usd": cost.usd, "at": t.to_instant(at),
        }  # fmt: skip
        return await self._add(t.usage, row)

    async def start_measurement(self, started: MeasurementStarted) -> bool:
        row = {
            "id": started.id, "project": started.project, "report_id": started.report_id, "change_id": started.change_id,
            "started": started.model_dump_json(), "at": t.to_instant(started.at),
        }  # fmt: skip
        return await self._add(t.measurements, row)

    async def measurement_of(self, change_id: str) -> tuple[MeasurementStarted | None, Measurement | None]:
        """What is recorded of the measurement of a change: its start and its verdict."""
        c = t.measurements.c
        statement = select(c.started, c.body).where(c.change_id == change_id).order_by(c.at.desc()).limit(1)
        row = (await self._connection.execute(statement)).first()
        if row is None:
            return None, None
        return (
            MeasurementStarted.model_validate_json(row[0]) if row[0] else None,
            Measurement.model_validate_json(row[1]) if row[1] else None,
        )

    async def complete_measurement(self, measurement: Measurement) -> bool:
        """Records the verdict once; the row may be there from its start, or not."""
        c = t.measurements.c
        values = {"verdict": measurement.verdict.value, "body": measurement.model_dump_json(), "at": t.to_instant(measurement.at)}
        row = {"id": measurement.id, "project": measurement.project, "report_id": measurement.report_id, "change_id": measurement.change_id}
        if await self._add(t.measurements, row | values):
            return True
        updated = await self._connection.execute(update(t.measurements).where(c.id == measurement.id, c.verdict.is_(None)).values(values))
        return bool(updated.rowcount == 1)

    # Outbox, events

    def after_commit(self, call: Callable[[], None]) -> None:
        self.calls_after_commit.append(call)

    async def enqueue(self, item: OutboxItem) -> None:
        values = {
            "kind": item.kind,
            "tokens": json.dumps(item.tokens),
            "message_id": item.message_id,
            "about": item.about,
            "payload": item.payload,
            "traceparent": item.traceparent,
            "decided_at": t.to_instant(item.decided_at),
        }
        await self._connection.execute(t.outbox.insert().values(values))

    async def add_event(self, kind: str, project: str, body: dict[str, Any], at: datetime) -> None:
        await self._connection.execute(t.events.insert().values(kind=kind, project=project, body=json.dumps(body), at=t.to_instant(at)))

    # Projects and keys

    async def projects(self) -> list[tuple[str, int, int, str]]:
        c = t.projects.c
        rows = await self._connection.execute(select(c.name, c.number, c.revision, c.config).order_by(c.name))
        return [(name, number, revision, config) for name, number, revision, config in rows]

    async def project(self, name: str) -> tuple[int, int, str] | None:
        """(number, revision, configuration)"""
        c = t.projects.c
        row = (await self._connection.execute(select(c.number, c.revision, c.config).where(c.name == name))).first()
        return (row[0], row[1], row[2]) if row is not None else None

    async def save_project(self, name: str, number: int, revision: int, config: str, at: datetime) -> None:
        values = {"name": name, "number": number, "revision": revision, "config": config, "created_at": t.to_instant(at)}
        kept = {"revision": revision, "config": config}
        await self._connection.execute(self._insert(t.projects).values(values).on_conflict_do_update(index_elements=["name"], set_=kept))

    async def keys(self, project: str) -> list[dict[str, Any]]:
        statement = select(t.keys).where(t.keys.c.project == project).order_by(t.keys.c.created_at, t.keys.c.id)
        return [dict(row) for row in (await self._connection.execute(statement)).mappings()]

    async def add_key(self, row: dict[str, Any]) -> None:
        await self._connection.execute(t.keys.insert().values(row))

    async def revoke_key(self, project: str, key_id: str, at: datetime) -> bool:
        c = t.keys.c
        statement = update(t.keys).where(c.project == project, c.id == key_id, c.revoked_at.is_(None)).values(revoked_at=t.to_instant(at))
        return bool((await self._connection.execute(statement)).rowcount == 1)
