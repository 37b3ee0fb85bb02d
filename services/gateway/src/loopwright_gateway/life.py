"""What happens to a report, in words a handler reads: open, transition, promote, ask for an investigation, ask for a change.

Every function works in one transaction: the state, its line on the timeline and the facts to publish are written together.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from loopwright_common.bus import Timer
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.changes import ChangeRequested
from loopwright_common.contracts.configuration import ProjectConfig, Promotion
from loopwright_common.contracts.investigations import Investigation
from loopwright_common.contracts.reports import (
    EXAMPLES_MAX,
    DismissReason,
    ReportReady,
    ReportSnapshot,
    ReportState,
    ReportTransitioned,
)
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import CHANGES_REQUESTED, REPORTS_READY, REPORTS_TRANSITIONED, Subject
from loopwright_common.errors import Refused
from loopwright_common.identifiers import derived_id
from loopwright_common.metrics import observe_stage

from loopwright_gateway import metrics
from loopwright_gateway import promotion as rules
from loopwright_gateway.domain import IllegalTransition, check
from loopwright_gateway.policy import Load, PolicyDecision, decide
from loopwright_gateway.ports import Unit
from loopwright_gateway.records import ChangeRecord, OutboxItem, Report, TimelineEntry

SERVICE = "gateway"
POLICY = "policy"
TIMER = "timer"
REASON_MAX = 2_048
DEPLOYS_SENT = 50
# With an investigation beside it, a request for a change stays under nats-server's default of 1 MiB for a message.
EXAMPLES_BYTES_MAX = 256 * 1024


async def publish(unit: Unit, subject: Subject, payload: Contract, message_id: str, about: str, **tokens: str) -> None:
    """Puts a fact into the outbox: it is published once the transaction stands."""
    await unit.enqueue(OutboxItem(subject.pattern, tokens, message_id, about, payload.model_dump_json()))


async def set_timer(unit: Unit, purpose: str, key: str, due_at: datetime) -> None:
    """Sets a timer once the transaction stands; the same purpose and key replace an earlier one."""
    timer = Timer(service=SERVICE, purpose=purpose, key=key, due_at=due_at)
    await unit.enqueue(OutboxItem(TIMER, {}, f"{purpose}:{key}", key, timer.model_dump_json()))


async def note(unit: Unit, report: Report, kind: str, actor: str, reason: str, at: datetime, cause: str) -> bool:
    """Writes a line on the timeline that changes no state. The same cause writes none twice; whether it was written."""
    if await unit.has_cause(report.id, cause):
        return False
    report.timeline_sequence += 1
    report.version += 1
    report.updated_at = max(report.updated_at, at)
    await unit.save_report(report)
    await unit.add_timeline(report, TimelineEntry(report.timeline_sequence, kind, actor, reason[:REASON_MAX], at, cause))
    await changed(unit, report, at)
    return True


async def changed(unit: Unit, report: Report, at: datetime) -> None:
    """Tells the clients of the stream."""
    body: dict[str, Any] = {"id": report.id, "state": report.state.value, "version": report.version}
    await unit.add_event("report.changed", report.project, body, at)


async def transition(
    unit: Unit, report: Report, to: ReportState, actor: str, reason: str, at: datetime, cause: str = "",
    *, dismiss_reason: DismissReason | None = None, merged_into: str | None = None, first: bool = False,
) -> None:  # fmt: skip
    """Moves a report. Raises IllegalTransition when the state cannot follow; then nothing was written."""
    if not first:
        check(report.state, to)
    came_from = None if first else report.state
    report.state = to
    report.state_reason = reason[:REASON_MAX]
    report.timeline_sequence += 1
    report.version += 1
    report.updated_at = max(report.updated_at, at)
    if to is not ReportState.NEEDS_INPUT:
        report.question = ""
    if to is not ReportState.SNOOZED:
        report.snoozed_until = report.snooze_signals = report.snoozed_at_count = None
    sequence = report.timeline_sequence
    cause = cause or f"transition:{sequence}"
    await unit.save_report(report)
    await unit.add_timeline(report, TimelineEntry(sequence, "transition", actor, reason[:REASON_MAX], at, cause, came_from, to))
    fact = ReportTransitioned(
        project=report.project, report_id=report.id, sequence=sequence, from_state=came_from, to_state=to, actor=actor,
        reason=reason[:REASON_MAX], dismiss_reason=dismiss_reason, merged_into=merged_into, at=at,
    )  # fmt: skip
    await publish(unit, REPORTS_TRANSITIONED, fact, f"transition:{report.id}:{sequence}", report.id, project=report.project)
    await changed(unit, report, at)
    unit.after_commit(metrics.TRANSITIONS.labels(to.value).inc)


async def snapshot(unit: Unit, report: Report) -> ReportSnapshot:
    """The report as other services get it, with as many examples as a message has room for."""
    examples = await unit.examples(report.id, EXAMPLES_MAX)
    return ReportSnapshot(
        id=report.id,
        project=report.project,
        title=report.title,
        state=report.state,
        services=tuple(report.services[:32]),
        kinds=report.kinds,
        releases=report.releases,
        signal_count=report.signal_count,
        people_count=report.people_count,
        first_seen=report.first_seen,
        last_seen=report.last_seen,
        examples=fitting([signal for signal, _ in examples]),
        recurrence_of=report.recurrence_of,
        backfill_only=report.live_count == 0,
        input=tuple(report.input[-20:]),
    )


def fitting(signals: Sequence[Signal], bytes_max: int = EXAMPLES_BYTES_MAX) -> tuple[Signal, ...]:
    """Those of the signals that fit into ``bytes_max`` together, in their order; the very first is cut down rather than left out."""
    kept: list[Signal] = []
    left = bytes_max
    for signal in signals:
        size = len(signal.model_dump_json().encode())
        if not kept and size > left:
            cut: dict[str, Any] = {"body": signal.body[:2_000], "frames": signal.frames[-20:], "request": None, "labels": {}, "links": ()}
            kept.append(signal.model_copy(update=cut))
            left = 0
        elif size <= left:
            kept.append(signal)
            left -= size
    return tuple(kept)


async def consider_promotion(unit: Unit, report: Report, project: ProjectConfig, now: datetime) -> None:
    """Makes a gathering report ready when it is, or sets the timer for when only time is missing."""
    if report.state is not ReportState.GATHERING:
        return
    decision = await promotion_of(unit, report, project.promotion, now)
    if decision.ready:
        await ask_for_investigation(unit, report, POLICY, decision.reason, now)
    elif decision.at is not None:
        await set_timer(unit, "promote", report.id, decision.at)


async def promotion_of(unit: Unit, report: Report, promotion: Promotion, now: datetime, *, exact: bool = False) -> rules.PromotionDecision:
    """Whether a gathering report is ready, and what is missing.

    A flood does not pay for reading its signals again: where even the most that the totals allow is not enough, that is the answer, with
    the weight as an upper bound. ``exact`` is for a person who reads the figures.
    """
    totals = rules.Totals(report.kinds, report.weight, report.live_count, report.people_count)
    gathered, known = rules.from_totals(promotion, totals)
    if not known and (exact or all(part.reached for part in rules.parts_of(promotion, gathered))):
        minutes = await unit.minute_weights(report.id, rules.kinds_that_count(promotion, report.kinds))
        gathered = rules.from_minutes(promotion, totals, minutes)
    return rules.promote(promotion, gathered, opened_at=report.opened_at, now=now)


async def ask_for_investigation(unit: Unit, report: Report, actor: str, reason: str, now: datetime) -> None:
    """Moves a report to ready and asks the investigator. Raises IllegalTransition."""
    await transition(unit, report, ReportState.READY, actor, reason, now)
    report.attempt += 1
    await unit.save_report(report)
    ready = ReportReady(
        project=report.project,
        report=await snapshot(unit, report),
        attempt=report.attempt,
        deploys=tuple(await unit.deploys(report.project, report.services, DEPLOYS_SENT)),
        at=now,
    )
    if report.attempt == 1:
        unit.after_commit(lambda: observe_stage("grouped_to_ready", report.opened_at, now))
    await publish(unit, REPORTS_READY, ready, f"ready:{report.id}:{report.attempt}", report.id, project=report.project)


async def load_of(unit: Unit, investigation: Investigation, report: Report, now: datetime) -> Load:
    """What is under way, as the policy needs it."""
    suspect = investigation.suspects[0].commit if investigation.suspects else None
    same = await unit.open_change_for(report.project, investigation.repository, suspect) if suspect else None
    return Load(
        changes_last_hour=await unit.changes_since(report.project, now - timedelta(hours=1)),
        changes_last_day=await unit.changes_since(report.project, now - timedelta(days=1)),
        open_in_repository=await unit.open_changes(report.project, investigation.repository),
        usd_last_day=await unit.usd_since(report.project, now - timedelta(days=1)),
        same_cause_open=same if same != report.id else None,
    )


async def consider_change(
    unit: Unit, report: Report, investigation: Investigation, project: ProjectConfig, actor: str, now: datetime
) -> PolicyDecision:
    """Asks for a change when the policy lets it; a refusal is written on the report. Raises IllegalTransition."""
    by_person = actor != POLICY
    load = await load_of(unit, investigation, report, now)
    decision = decide(project.policy, investigation, load, backfill_only=report.live_count == 0, by_person=by_person)
    if decision.start:
        await ask_for_change(unit, report, investigation, actor, decision.reason, now)
        return decision
    if not by_person:
        unit.after_commit(metrics.NOT_STARTED.labels(decision.rule).inc)
        report.state_reason = decision.reason
        await note(unit, report, "not_started", POLICY, decision.reason, now, f"not_started:{investigation.id}")
    return decision


async def ask_for_change(
    unit: Unit, report: Report, investigation: Investigation, actor: str, reason: str, now: datetime, feedback: tuple[str, ...] = ()
) -> ChangeRecord:
    """Moves a report to changing and asks pr-agent. Raises IllegalTransition."""
    await transition(unit, report, ReportState.CHANGING, actor, reason, now)
    report.change_attempt += 1
    await unit.save_report(report)
    change = ChangeRecord(
        id=derived_id("change", report.id, str(report.change_attempt)),
        project=report.project,
        report_id=report.id,
        repository=investigation.repository,
        suspect=investigation.suspects[0].commit if investigation.suspects else None,
        state="requested",
        attempt=report.change_attempt,
        title=report.title,
        requested_by=actor,
        created_at=now,
        updated_at=now,
        fact_at=now,
        feedback=list(feedback),
    )
    await unit.save_change(change)
    request = ChangeRequested(
        change_id=change.id,
        project=report.project,
        report=await snapshot(unit, report),
        investigation=investigation,
        attempt=change.attempt,
        requested_by=actor,
        feedback=feedback[-20:],
        at=now,
    )
    unit.after_commit(metrics.CHANGES.labels("requested").inc)
    await publish(unit, CHANGES_REQUESTED, request, f"change:{change.id}", change.id, project=report.project)
    await unit.add_event("change.changed", report.project, {"id": change.id, "report_id": report.id, "state": change.state}, now)
    return change


def refuse(error: IllegalTransition) -> Refused:
    """A person's wish that the state does not allow, as an error the API answers 409 with."""
    return Refused(str(error))
