"""Changes, verdicts and metered use."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from fastapi.responses import PlainTextResponse
from loopwright_common.problems import ProblemError

from loopwright_gateway import views as v
from loopwright_gateway.api.parts import READ, WRITE, Caller, Parts, PartsOf, Responder, actor, decode_cursor, encode_cursor

router = APIRouter(prefix="/v1", tags=["changes"])

Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The change's id.")]
State = Literal["requested", "working", "in_review", "merged", "closed", "failed"]
Project = Annotated[str | None, Query(max_length=64, pattern=r"^[^\x00]*$")]
ReportId = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Only those of this report.")]
Cursor = Annotated[str | None, Query(max_length=512)]
Limit = Annotated[int, Query(ge=1, le=200)]


@router.get("/changes", responses=READ)
async def list_changes(
    parts: PartsOf,
    _: Caller,
    project: Project = None,
    state: Annotated[list[State] | None, Query()] = None,
    report_id: ReportId = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> v.Page[v.ChangeView]:
    """The changes, newest first."""
    items, after = await parts.inbox.changes(project, state or [], report_id, decode_cursor("changes", cursor, (int, str)), limit)
    return v.Page(items=items, next_cursor=encode_cursor("changes", after))


@router.get("/changes/{change_id}", responses=READ)
async def show_change(parts: PartsOf, _: Caller, change_id: Id) -> v.ChangeView:
    """A change, its checks and what ran in the sandbox."""
    return await _change(parts, change_id)


async def _change(parts: Parts, change_id: str) -> v.ChangeView:
    found = await parts.inbox.change(change_id)
    if found is None:
        raise ProblemError(404, f"Change {change_id} does not exist.")
    return found


@router.get("/changes/{change_id}/diff", responses=READ, response_class=PlainTextResponse)
async def show_diff(parts: PartsOf, _: Caller, change_id: Id) -> PlainTextResponse:
    """The change as a unified diff."""
    await _change(parts, change_id)
    return PlainTextResponse(await parts.inbox.diff(change_id) or "")


@router.post("/changes/{change_id}/actions/merge", responses=WRITE, status_code=202)
async def merge(parts: PartsOf, account: Responder, change_id: Id, body: v.MergeChange) -> v.ChangeView:
    """Merges exactly the commit that was seen, in the caller's name. Carried out by pr-agent a moment later."""
    await parts.people.merge(change_id, actor(account), body.name or account.name, body.email, body.expected_head)
    return await _change(parts, change_id)


@router.post("/changes/{change_id}/actions/decline", responses=WRITE, status_code=202)
async def decline(parts: PartsOf, account: Responder, change_id: Id, body: v.RequiredComment) -> v.ChangeView:
    """Closes the pull request; the report waits for what should be done instead."""
    await parts.people.decline(change_id, actor(account), account.name, "", body.comment)
    return await _change(parts, change_id)


@router.post("/changes/{change_id}/actions/request_changes", responses=WRITE, status_code=202)
async def request_changes(parts: PartsOf, account: Responder, change_id: Id, body: v.RequiredComment) -> v.ChangeView:
    """Writes the review on the pull request and hands it to whoever makes the change."""
    await parts.people.request_changes(change_id, actor(account), account.name, "", body.comment)
    return await _change(parts, change_id)


@router.post("/changes/{change_id}/actions/retry", responses=WRITE, status_code=202)
async def retry(parts: PartsOf, account: Responder, change_id: Id) -> v.ReportDetail:
    """Starts the work on the change's report again."""
    report = await parts.people.retry(change_id, actor(account))
    found = await parts.inbox.report(report.id, parts.clock.now())
    assert found is not None
    return found


@router.get("/verdicts", responses=READ)
async def list_verdicts(
    parts: PartsOf,
    _: Caller,
    project: Project = None,
    report_id: ReportId = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> v.Page[v.VerdictView]:
    """What was measured, newest first."""
    items, after = await parts.inbox.verdicts(project, report_id, decode_cursor("verdicts", cursor, (int, str)), limit)
    return v.Page(items=items, next_cursor=encode_cursor("verdicts", after))


@router.get("/usage", responses=READ)
async def show_usage(
    parts: PartsOf,
    _: Caller,
    project: Project = None,
    month: Annotated[str | None, Query(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$", description="As 2026-11; by default this month.")] = None,
) -> v.Usage:
    """Pull requests, and cost per stage, of a month."""
    return await parts.inbox.usage(project, month or parts.clock.now().strftime("%Y-%m"))
