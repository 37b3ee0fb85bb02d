"""The grouping: why signals are together, what people say of it, and how its versions compare."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from loopwright_common.bus import Bus
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.queries import EvaluationAnswer, EvaluationQuery, ShadowAnswer, ShadowQuery
from loopwright_common.contracts.subjects import EVALUATION_QUERY, SHADOW_QUERY, Question
from loopwright_common.errors import LoopwrightError
from loopwright_common.problems import ProblemError

from loopwright_gateway import views as v
from loopwright_gateway.api.parts import READ, WRITE, Caller, Parts, PartsOf, Responder, Version, actor, decode_cursor, encode_cursor
from loopwright_gateway.api.reports import NUL, Id, detail_of, exists

router = APIRouter(prefix="/v1", tags=["grouping"])

EXPLAIN_CURSOR: tuple[type, ...] = (int, str)
FINGERPRINTS_CURSOR: tuple[type, ...] = (int, str)
EVALUATION_SECONDS = 60.0  # it decides anew what people have decided: thousands of pairs at most
SHADOW_SECONDS = 5.0

Project = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="The project's name.")]
Cursor = Annotated[str | None, Query(max_length=2_048, description="next_cursor of the page before.")]
Limit = Annotated[int, Query(ge=1, le=200)]


@router.get("/reports/{report_id}/explain", responses=READ)
async def explain(
    parts: PartsOf,
    _: Caller,
    report_id: Id,
    fingerprint: Annotated[str | None, Query(max_length=512, pattern=NUL, description="Only signals of this fingerprint.")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> v.Page[v.Explanation]:
    """Each of its signals, newest first, with the rule or the neighbours that put it there, and the person who moved it."""
    await exists(parts, report_id)
    rows, after = await parts.inbox.explain(report_id, fingerprint, decode_cursor("explain", cursor, EXPLAIN_CURSOR), limit)
    return v.Page(items=rows, next_cursor=encode_cursor("explain", after))


@router.get("/reports/{report_id}/fingerprints", responses=READ)
async def fingerprints(parts: PartsOf, _: Caller, report_id: Id, cursor: Cursor = None, limit: Limit = 50) -> v.Page[v.FingerprintView]:
    """Its fingerprints, the one seen last first, with how many signals each has: what a person picks from to split or move."""
    await exists(parts, report_id)
    rows, after = await parts.inbox.fingerprints(report_id, decode_cursor("fingerprints", cursor, FINGERPRINTS_CURSOR), limit)
    return v.Page(items=rows, next_cursor=encode_cursor("fingerprints", after))


@router.get("/reports/{report_id}/grouping", responses=READ)
async def grouping(parts: PartsOf, _: Caller, report_id: Id) -> v.Grouping:
    """What people said of its grouping, newest first: what was asked, what came of it, and what can be undone."""
    await exists(parts, report_id)
    return v.Grouping(words=await parts.inbox.words(report_id))


@router.post("/reports/{report_id}/actions/merge_into", responses=WRITE, status_code=202)
async def merge_into(parts: PartsOf, account: Responder, report_id: Id, body: v.MergeInto, version: Version) -> v.ReportDetail:
    """Puts its signals, and those to come, into another report. Carried out by the grouping a moment later.

    Refused then, with the reason in /v1/reports/{id}/grouping and on the timeline, where somebody said that they are never together.
    """
    await parts.people.merge_into(report_id, actor(account), body.report_id, body.comment, version)
    return await detail_of(parts, report_id)


@router.post("/reports/{report_id}/actions/split", responses=WRITE, status_code=202)
async def split(parts: PartsOf, account: Responder, report_id: Id, body: v.Split, version: Version) -> v.ReportDetail:
    """Gives some of its signals a report of their own. Carried out by the grouping a moment later.

    A fingerprint that is named leaves with all its signals, those to come too, and is not grouped with this report again by itself. A
    signal that is named leaves alone; when all of a fingerprint's signals are named, the fingerprint goes along.
    """
    await parts.people.split(report_id, actor(account), body.signal_ids, body.fingerprints, body.comment, version)
    return await detail_of(parts, report_id)


@router.post("/reports/{report_id}/actions/move", responses=WRITE, status_code=202)
async def move(parts: PartsOf, account: Responder, report_id: Id, body: v.Move, version: Version) -> v.ReportDetail:
    """Puts some of its signals into another report. Carried out by the grouping a moment later.

    A fingerprint that is named leaves with all its signals, those to come too. A signal that is named leaves alone; when all of a
    fingerprint's signals are named, the fingerprint goes along.
    """
    await parts.people.move(report_id, actor(account), body.report_id, body.signal_ids, body.fingerprints, body.comment, version)
    return await detail_of(parts, report_id)


@router.post("/reports/{report_id}/actions/never_together", responses=WRITE, status_code=202)
async def never_together(parts: PartsOf, account: Responder, report_id: Id, body: v.NeverTogether, version: Version) -> v.ReportDetail:
    """Says that this report and another are different problems: the grouping never joins them, and refuses to merge them."""
    await parts.people.never_together(report_id, actor(account), body.report_id, body.comment, version)
    return await detail_of(parts, report_id)


@router.post("/reports/{report_id}/actions/undo", responses=WRITE, status_code=202)
async def undo(parts: PartsOf, account: Responder, report_id: Id, body: v.Undo, version: Version) -> v.ReportDetail:
    """Takes back a word on the grouping that is about this report. Carried out by the grouping a moment later.

    The signals that the word moved go back, with their counts; of a split or a move, what came of its fingerprints since goes along. A
    report that was merged away gathers again, or is looked into again when it had been.
    """
    await parts.people.undo(report_id, actor(account), body.command_id, body.comment, version)
    return await detail_of(parts, report_id)


@router.get("/projects/{project}/grouping/evaluation", responses=READ)
async def evaluation(
    parts: PartsOf,
    _: Caller,
    project: Project,
    version: Annotated[Literal["", "v1", "v2"], Query(description="A version of the grouping; the one in charge when empty.")] = "",
) -> EvaluationAnswer:
    """How a version of the grouping would by itself decide the pairs that people have decided. 503 when the grouping does not answer."""
    answer = await _ask(parts, project, EVALUATION_QUERY, EvaluationQuery(project=project, version=version), EVALUATION_SECONDS)
    assert isinstance(answer, EvaluationAnswer)
    return answer


@router.get("/projects/{project}/grouping/shadow", responses=READ)
async def shadow(parts: PartsOf, _: Caller, project: Project) -> ShadowAnswer:
    """How the version that runs in shadow decided beside the one in charge. 503 when the grouping does not answer."""
    answer = await _ask(parts, project, SHADOW_QUERY, ShadowQuery(project=project), SHADOW_SECONDS)
    assert isinstance(answer, ShadowAnswer)
    return answer


async def _ask(parts: Parts, project: str, question: Question, query: Contract, seconds: float) -> Contract:
    if parts.catalogue.get(project) is None:
        raise ProblemError(404, f"Project {project} does not exist.")
    bus: Bus = parts.bus
    try:
        return await bus.ask(question, query, timedelta(seconds=seconds))
    except (LoopwrightError, ValueError) as error:
        raise ProblemError(503, f"The grouping did not answer: {error}", headers={"Retry-After": "5"}) from error
