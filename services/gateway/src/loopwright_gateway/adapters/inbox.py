"""What the inbox asks of the database. Reads only."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from loopwright_common.contracts.changes import Change
from loopwright_common.contracts.configuration import ProjectConfig
from loopwright_common.contracts.investigations import Cost
from loopwright_common.contracts.measurements import Measurement, MeasurementStarted
from loopwright_common.contracts.reports import ReportState
from loopwright_common.contracts.signals import Deploy
from sqlalchemy import and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from loopwright_gateway.adapters import tables as t
from loopwright_gateway.adapters.explaining import Explaining
from loopwright_gateway.adapters.store import SqlStore
from loopwright_gateway.adapters.unit import SqlUnit, change_of, report_of
from loopwright_gateway.domain import WAITS_FOR_PERSON, actions, priority_rank, waits_for
from loopwright_gateway.life import promotion_of
from loopwright_gateway.people import facts_of
from loopwright_gateway.ports import ProjectOf, ReportQuery
from loopwright_gateway.promotion import PromotionDecision
from loopwright_gateway.records import ChangeRecord, Report, StreamEvent
from loopwright_gateway.views import (
    ChangeView,
    DeployMark,
    PromotionPart,
    PromotionView,
    ReportDetail,
    ReportRow,
    StageUsage,
    TimelineItem,
    Usage,
    VerdictView,
)

TOTAL_MAX = 10_000
HOURS = 24
CLOSED = (ReportState.DISMISSED, ReportState.SUPPRESSED, ReportState.MERGED_INTO)


@dataclass(frozen=True)
class _Order:
    columns: tuple[Any, ...]
    descending: tuple[bool, ...]


C = t.reports.c
ORDERS: dict[str, _Order] = {
    "priority": _Order((C.priority_rank, C.last_seen, C.id), (False, True, True)),
    "last_seen": _Order((C.last_seen, C.id), (True, True)),
    "people": _Order((C.people_count, C.id), (True, True)),
    "created": _Order((C.opened_at, C.id), (True, True)),
}


class Inbox(Explaining):
    """Implements ports.Inbox."""

    def __init__(self, store: SqlStore, project_of: ProjectOf | None = None) -> None:
        self._store = store
        self._project_of = project_of or (lambda _: None)

    async def reports(self, query: ReportQuery, now: datetime) -> tuple[list[ReportRow], list[Any] | None, int]:
        """A page of rows, where the next one begins, and how many match."""
        order = ORDERS[query.sort]
        where = _conditions(query)
        async with self._store.read() as connection:
            matching = select(C.id).where(*where).limit(TOTAL_MAX).subquery()
            total = int((await connection.execute(select(func.count()).select_from(matching))).scalar() or 0)
            statement = select(t.reports).where(*where)
            if query.after is not None:
                statement = statement.where(_beyond(order, query.after))
            ordering = [column.desc() if down else column.asc() for column, down in zip(order.columns, order.descending, strict=True)]
            rows = (await connection.execute(statement.order_by(*ordering).limit(query.limit + 1))).mappings().all()
            page = rows[: query.limit]
            after = [page[-1][column.name] for column in order.columns] if len(rows) > query.limit and page else None
            return await self._rows(connection, [report_of(row) for row in page], now), after, total

    async def _rows(self, connection: AsyncConnection, reports: list[Report], now: datetime) -> list[ReportRow]:
        start = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=HOURS - 1)
        buckets = await _buckets(connection, [report.id for report in reports], start)
        deploys = await _deploys(connection, reports, start)
        rows = [_row(report, buckets[report.id], deploys[report.id]) for report in reports]
        unit = SqlUnit(connection)
        for index, report in enumerate(reports):
            decision = await self._promotion(unit, report, now)
            if decision is not None and decision.waits_for:
                rows[index] = rows[index].model_copy(update={"waits_for": decision.waits_for})
        return rows

    async def report(self, report_id: str, now: datetime) -> ReportDetail | None:
        async with self._store.read() as connection:
            unit = SqlUnit(connection)
            report = await unit.report(report_id)
            if report is None:
                return None
            (row,) = await self._rows(connection, [report], now)
            promotion = await self._promotion(unit, report, now)
            change = await unit.latest_change(report_id)
            m = t.measurements.c
            measured = (
                await connection.execute(select(m.started, m.body).where(m.report_id == report_id).order_by(m.at.desc()).limit(1))
            ).first()
            back = (await connection.execute(select(C.id).where(C.recurrence_of == report_id).order_by(C.opened_at).limit(50))).scalars()
            return ReportDetail(
                **dict(row),
                releases=report.releases,
                question=report.question,
                state_reason=report.state_reason,
                input=report.input,
                actions=[action.value for action in actions(await facts_of(unit, report))],
                merged_into=report.merged_into,
                recurrences=list(back),
                snoozed_until=report.snoozed_until,
                promotion=promotion_view(promotion) if promotion else None,
                investigation=await unit.investigation(report_id),
                change=change_view(change) if change else None,
                measurement=Measurement.model_validate_json(measured[1]) if measured and measured[1] else None,
                measurement_started=MeasurementStarted.model_validate_json(measured[0]) if measured and measured[0] else None,
            )

    async def _promotion(self, unit: SqlUnit, report: Report, now: datetime) -> PromotionDecision | None:
        if report.state is not ReportState.GATHERING:
            return None
        project = self._project_of(report.project) or ProjectConfig(name=report.project)
        return await promotion_of(unit, report, project.promotion, now, exact=True)

    async def timeline(self, report_id: str, after: int, limit: int) -> list[TimelineItem]:
        c = t.timeline.c
        statement = select(t.timeline).where(c.report_id == report_id, c.sequence > after).order_by(c.sequence).limit(limit)
        async with self._store.read() as connection:
            return [
                TimelineItem(
                    sequence=row["sequence"], kind=row["kind"], actor=row["actor"], reason=row["reason"], at=t.from_instant(row["at"]),
                    from_state=row["from_state"], to_state=row["to_state"],
                )
                for row in (await connection.execute(statement)).mappings()
            ]  # fmt: skip

    async def changes(
        self, project: str | None, states: Sequence[str], report_id: str | None, after: list[Any] | None, limit: int
    ) -> tuple[list[ChangeView], list[Any] | None]:
        c = t.changes.c
        statement = select(t.changes).order_by(c.created_at.desc(), c.id.desc()).limit(limit + 1)
        if project:
            statement = statement.where(c.project == project)
        if states:
            statement = statement.where(c.state.in_(states))
        if report_id:
            statement = statement.where(c.report_id == report_id)
        if after:
            statement = statement.where(or_(c.created_at < after[0], and_(c.created_at == after[0], c.id < after[1])))
        async with self._store.read() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        page = rows[:limit]
        following = [page[-1]["created_at"], page[-1]["id"]] if len(rows) > limit else None
        return [change_view(change_of(row)) for row in page], following

    async def change(self, change_id: str) -> ChangeView | None:
        async with self._store.read() as connection:
            change = await SqlUnit(connection).change(change_id)
        return change_view(change) if change else None

    async def diff(self, change_id: str) -> str | None:
        async with self._store.read() as connection:
            change = await SqlUnit(connection).change(change_id)
        return Change.model_validate_json(change.body).diff if change and change.body else None

    async def verdicts(
        self, project: str | None, report_id: str | None, after: list[Any] | None, limit: int
    ) -> tuple[list[VerdictView], list[Any] | None]:
        c = t.measurements.c
        statement = (
            select(c.at, c.id, c.body, C.title)
            .join(t.reports, C.id == c.report_id)
            .where(c.verdict.is_not(None))
            .order_by(c.at.desc(), c.id.desc())
            .limit(limit + 1)
        )
        if project:
            statement = statement.where(c.project == project)
        if report_id:
            statement = statement.where(c.report_id == report_id)
        if after:
            statement = statement.where(or_(c.at < after[0], and_(c.at == after[0], c.id < after[1])))
        async with self._store.read() as connection:
            rows = (await connection.execute(statement)).all()
        page = rows[:limit]
        following = [page[-1][0], page[-1][1]] if len(rows) > limit else None
        return [VerdictView(report_title=title, measurement=Measurement.model_validate_json(body)) for _, _, body, title in page], following

    async def usage(self, project: str | None, month: str, report_id: str | None = None) -> Usage:
        c = t.usage.c
        statement = select(c.stage, c.pull_requests, c.cost)
        statement = statement.where(c.report_id == report_id) if report_id else statement.where(c.month == month)
        if project:
            statement = statement.where(c.project == project)
        runs: dict[str, int] = defaultdict(int)
        pulls: dict[str, int] = defaultdict(int)
        costs: dict[str, Cost] = defaultdict(Cost)
        async with self._store.read() as connection:
            for stage, pull_requests, cost in (await connection.execute(statement)).all():
                runs[stage] += 1
                pulls[stage] += pull_requests
                costs[stage] = _sum(costs[stage], Cost.model_validate_json(cost))
        stages = [
            StageUsage(stage=stage, runs=runs[stage], pull_requests=pulls[stage], cost=costs[stage])
            for stage in ("investigate", "change", "pull_request", "measure")
            if runs[stage]
        ]
        usd = sum(item.cost.usd for item in stages)
        return Usage(project=project, month=month, pull_requests=sum(pulls.values()), usd=usd, stages=stages)

    async def deploys(self, project: str, services: Sequence[str], start: datetime) -> list[Deploy]:
        async with self._store.read() as connection:
            return await SqlUnit(connection).deploys(project, services, 500, start)

    async def services_of(self, report_id: str) -> tuple[str, list[str]] | None:
        """(project, services)"""
        async with self._store.read() as connection:
            row = (await connection.execute(select(C.project, C.services).where(C.id == report_id))).first()
        return (row[0], json.loads(row[1])) if row is not None else None

    async def events(self, after: int, limit: int) -> list[StreamEvent]:
        c = t.events.c
        async with self._store.read() as connection:
            rows = await connection.execute(select(c.id, c.kind, c.project, c.body).where(c.id > after).order_by(c.id).limit(limit))
            return [StreamEvent(*row) for row in rows]

    async def event_range(self) -> tuple[int, int]:
        """The oldest and the newest event's id; zeros when there is none."""
        c = t.events.c
        async with self._store.read() as connection:
            row = (await connection.execute(select(func.min(c.id), func.max(c.id)))).first()
        return (row[0] or 0, row[1] or 0) if row is not None else (0, 0)


def _sum(one: Cost, other: Cost) -> Cost:
    return Cost(**{name: getattr(one, name) + getattr(other, name) for name in Cost.model_fields})


def _conditions(query: ReportQuery) -> list[Any]:
    where: list[Any] = []
    if query.project:
        where.append(C.project == query.project)
    if query.states:
        where.append(C.state.in_([state.value for state in query.states]))
    elif not query.include_closed:
        where.append(C.state.not_in([state.value for state in CLOSED]))
    if query.priorities:
        where.append(C.priority_rank.in_([priority_rank(priority) for priority in query.priorities]))
    if query.waits_for_me:
        where.append(C.state.in_([state.value for state in WAITS_FOR_PERSON]))
    if query.service:
        where.append(C.services.contains(json.dumps(query.service), autoescape=True))
    if query.kind:
        where.append(C.kinds.contains(json.dumps(query.kind) + ":", autoescape=True))
    if query.ids is not None and query.text:
        where.append(or_(C.id.in_(query.ids), func.lower(C.title).contains(query.text.lower(), autoescape=True)))
    elif query.text:
        where.append(func.lower(C.title).contains(query.text.lower(), autoescape=True))
    return where


def _beyond(order: _Order, after: Sequence[Any]) -> Any:
    """Rows that come after ``after`` in this order: the keyset condition, spelled out because directions differ."""
    alternatives = []
    for index, (column, down) in enumerate(zip(order.columns, order.descending, strict=True)):
        equal = [order.columns[before] == after[before] for before in range(index)]
        alternatives.append(and_(*equal, column < after[index] if down else column > after[index]))
    return or_(*alternatives)


async def _buckets(connection: AsyncConnection, ids: Sequence[str], start: datetime) -> dict[str, list[int]]:
    c = t.minute_counts.c
    found: dict[str, list[int]] = {report_id: [0] * HOURS for report_id in ids}
    low = t.to_instant(start)
    rows = await connection.execute(
        select(c.report_id, c.minute, func.sum(c.count)).where(c.report_id.in_(ids), c.minute >= low).group_by(c.report_id, c.minute)
    )
    for report_id, minute, number in rows:
        index = (minute - low) // 3_600_000
        if 0 <= index < HOURS:
            found[report_id][index] += int(number)
    return found


async def _deploys(connection: AsyncConnection, reports: Sequence[Report], start: datetime) -> dict[str, list[DeployMark]]:
    unit = SqlUnit(connection)
    found: dict[str, list[DeployMark]] = {}
    known: dict[tuple[str, tuple[str, ...]], list[DeployMark]] = {}
    for report in reports:
        key = (report.project, tuple(report.services))
        if key not in known:
            deploys = await unit.deploys(report.project, report.services, 50, start) if report.services else []
            known[key] = [DeployMark(at=deploy.deployed_at, service=deploy.service, release=deploy.release) for deploy in deploys]
        found[report.id] = known[key]
    return found


def _row(report: Report, buckets: list[int], deploys: list[DeployMark]) -> ReportRow:
    reason = report.state_reason if report.state is ReportState.ACTIONABLE else ""
    return ReportRow(
        id=report.id,
        project=report.project,
        title=report.title,
        state=report.state,
        priority=report.priority,
        services=report.services,
        kinds=report.kinds,
        signal_count=report.signal_count,
        people_count=report.people_count,
        first_seen=report.first_seen,
        last_seen=report.last_seen,
        waits_for=waits_for(report.state, report.question, reason),
        waits_for_person=report.state in WAITS_FOR_PERSON,
        sparkline=buckets,
        deploys=deploys,
        recurrence_of=report.recurrence_of,
        version=report.version,
    )


def promotion_view(decision: PromotionDecision) -> PromotionView:
    """What a gathering report has and needs, as the API shows it."""
    parts = [PromotionPart.model_validate({"name": part.name, "value": part.value, "needed": part.needed}) for part in decision.parts]
    return PromotionView(ready=decision.ready, reason=decision.reason, parts=parts, at=decision.at)


def change_view(record: ChangeRecord) -> ChangeView:
    """A change as the API shows it."""
    values: dict[str, Any] = {name: value for name, value in vars(record).items() if name not in ("body", "suspect", "fact_at")}
    if record.body:
        change = Change.model_validate_json(record.body)
        shown: Mapping[str, Any] = {name: getattr(change, name) for name in _SHOWN}
        values |= shown
    return ChangeView(**values)


_SHOWN = (
    "strategy", "body", "base_commit", "reverts", "files", "diff_bytes", "proof", "proof_reason", "runs", "checks", "pull_request", "cost",
)  # fmt: skip
