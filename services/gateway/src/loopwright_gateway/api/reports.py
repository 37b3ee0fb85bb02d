"""Reports: the list, one report, its timeline, its signals and rates, and what a person can do with it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Path, Query
from loopwright_common.contracts.base import UtcDatetime
from loopwright_common.contracts.queries import ExposureMinute, SearchAnswer, SearchQuery
from loopwright_common.contracts.reports import ReportState
from loopwright_common.contracts.subjects import SEARCH_QUERY
from loopwright_common.errors import LoopwrightError
from loopwright_common.problems import ProblemError

from loopwright_gateway import views as v
from loopwright_gateway.api.parts import (
    READ,
    WRITE,
    Caller,
    Parts,
    PartsOf,
    Responder,
    Version,
    actor,
    decode_cursor,
    encode_cursor,
)
from loopwright_gateway.ports import ReportQuery

router = APIRouter(prefix="/v1/reports", tags=["reports"])
log = structlog.get_logger()

Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The report's id.")]
Sort = Literal["priority", "last_seen", "people", "created"]
CURSORS: dict[str, tuple[type, ...]] = {
    "priority": (int, int, str), "last_seen": (int, str), "people": (int, str), "created": (int, str),
}  # fmt: skip
SEARCH_SECONDS = 2.0
RATES_DAYS_MAX = 31
RATES_LIMIT = 50_000
NUL = r"^[^\x00]*$"


@router.get("", responses=READ)
async def list_reports(
    parts: PartsOf,
    _: Caller,
    project: Annotated[str | None, Query(max_length=64, pattern=NUL)] = None,
    state: Annotated[list[ReportState] | None, Query(description="One or more states.")] = None,
    priority: Annotated[list[Literal["P0", "P1", "P2", "P3", "P4"]] | None, Query()] = None,
    service: Annotated[str, Query(max_length=64, pattern=NUL)] = "",
    kind: Annotated[str, Query(max_length=32, pattern=NUL, description="Reports that hold a signal of this kind.")] = "",
    q: Annotated[str, Query(max_length=512, pattern=NUL, description="Words, found by meaning and in titles.")] = "",
    waits_for_me: Annotated[bool, Query(description="Only what waits for a person.")] = False,
    closed: Annotated[bool, Query(description="Also what was dismissed, suppressed or merged away.")] = False,
    sort: Sort = "priority",
    cursor: Annotated[str | None, Query(max_length=512)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> v.Page[v.ReportRow]:
    """The reports, a page at a time. The page after stays right when reports are added meanwhile."""
    query = ReportQuery(
        project=project,
        states=tuple(state or ()),
        priorities=tuple(priority or ()),
        service=service,
        kind=kind,
        text=q,
        ids=await _like(parts, project, q) if q and project else None,
        waits_for_me=waits_for_me,
        include_closed=closed,
        sort=sort,
        after=decode_cursor(sort, cursor, CURSORS[sort]),
        limit=limit,
    )
    rows, after, total = await parts.inbox.reports(query, parts.clock.now())
    return v.Page(items=rows, next_cursor=encode_cursor(sort, after), total=total)


async def _like(parts: Parts, project: str, text: str) -> tuple[str, ...] | None:
    """The reports most like a text, from cluster. None when it does not answer: titles are searched all the same."""
    try:
        answer = await parts.bus.ask(SEARCH_QUERY, SearchQuery(project=project, text=text), timedelta(seconds=SEARCH_SECONDS))
    except (LoopwrightError, ValueError) as error:
        log.info("search_without_meaning", reason=str(error))
        return None
    assert isinstance(answer, SearchAnswer)
    return tuple(hit.report_id for hit in answer.hits)


@router.get("/{report_id}", responses=READ)
async def show_report(parts: PartsOf, _: Caller, report_id: Id) -> v.ReportDetail:
    """Everything known of a report."""
    return await detail_of(parts, report_id)


async def detail_of(parts: Parts, report_id: str) -> v.ReportDetail:
    found = await parts.inbox.report(report_id, parts.clock.now())
    if found is None:
        raise ProblemError(404, f"Report {report_id} does not exist.")
    return found


@router.get("/{report_id}/timeline", responses=READ)
async def show_timeline(
    parts: PartsOf,
    _: Caller,
    report_id: Id,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only lines with a higher sequence.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 500,
) -> list[v.TimelineItem]:
    """What happened to it, oldest first."""
    await exists(parts, report_id)
    return await parts.inbox.timeline(report_id, after, limit)


@router.get("/{report_id}/usage", responses=READ)
async def report_usage(parts: PartsOf, _: Caller, report_id: Id) -> v.Usage:
    """What this report cost, stage by stage."""
    await exists(parts, report_id)
    return await parts.inbox.usage(None, "", report_id)


@router.get("/{report_id}/rates", responses=READ)
async def show_rates(
    parts: PartsOf,
    _: Caller,
    report_id: Id,
    start: Annotated[UtcDatetime | None, Query()] = None,
    end: Annotated[UtcDatetime | None, Query()] = None,
) -> v.Rates:
    """Exact counts per minute and release, exposure and deploys in [start, end); by default the last 24 hours."""
    project, services = await exists(parts, report_id)
    end = end or parts.clock.now() + timedelta(minutes=1)
    start = start or end - timedelta(days=1)
    _check_window(start, end)
    signals, exposure, truncated = await parts.store.rates(project, report_id, services, "", start, end, RATES_LIMIT)
    return v.Rates(
        start=start,
        end=end,
        signals=signals,
        exposure=[ExposureMinute(**minute) for minute in exposure],
        deploys=await parts.inbox.deploys(project, services, start) if services else [],
        truncated=truncated,
    )


def _check_window(start: datetime, end: datetime) -> None:
    if not timedelta(0) < end - start <= timedelta(days=RATES_DAYS_MAX) or start.year < 1970 or end.year > 9000:
        raise ProblemError(422, f"The window must end after it starts and be at most {RATES_DAYS_MAX} days long.")


async def exists(parts: Parts, report_id: str) -> tuple[str, list[str]]:
    found = await parts.inbox.services_of(report_id)
    if found is None:
        raise ProblemError(404, f"Report {report_id} does not exist.")
    return found


@router.post("/{report_id}/actions/provide_input", responses=WRITE)
async def provide_input(parts: PartsOf, account: Responder, report_id: Id, body: v.ProvideInput, version: Version) -> v.ReportDetail:
    """Answers what it waits for; it is looked into again with the answer."""
    await parts.people.provide_input(report_id, actor(account), body.text, version)
    return await detail_of(parts, report_id)


@router.post("/{report_id}/actions/start_work", responses=WRITE)
async def start_work(
    parts: PartsOf, account: Responder, report_id: Id, version: Version, body: v.StartWork | None = None
) -> v.ReportDetail:
    """Asks for the change. 409 names the cap that does not let it."""
    await parts.people.start_work(report_id, actor(account), version)
    return await detail_of(parts, report_id)


@router.post("/{report_id}/actions/dismiss", responses=WRITE)
async def dismiss(parts: PartsOf, account: Responder, report_id: Id, body: v.Dismiss, version: Version) -> v.ReportDetail:
    """Closes it without a change. After the reason ``fixed`` a recurrence opens a linked report."""
    await parts.people.dismiss(report_id, actor(account), body.reason, body.comment, version)
    return await detail_of(parts, report_id)


@router.post("/{report_id}/actions/snooze", responses=WRITE)
async def snooze(parts: PartsOf, account: Responder, report_id: Id, body: v.Snooze, version: Version) -> v.ReportDetail:
    """Quiet for some seconds, or for so many more signals, whichever comes first."""
    await parts.people.snooze(report_id, actor(account), seconds=body.seconds, signals=body.signals, version=version)
    return await detail_of(parts, report_id)


@router.post("/{report_id}/actions/suppress", responses=WRITE)
async def suppress(parts: PartsOf, account: Responder, report_id: Id, version: Version, body: v.Comment | None = None) -> v.ReportDetail:
    """Counts on, quietly, for good."""
    await parts.people.suppress(report_id, actor(account), body.comment if body else "", version)
    return await detail_of(parts, report_id)


@router.post("/{report_id}/actions/reopen", responses=WRITE)
async def reopen(parts: PartsOf, account: Responder, report_id: Id, version: Version, body: v.Comment | None = None) -> v.ReportDetail:
    """Looks into it afresh."""
    await parts.people.reopen(report_id, actor(account), body.comment if body else "", version)
    return await detail_of(parts, report_id)
