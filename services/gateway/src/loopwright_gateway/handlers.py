"""Handlers of what other services say. Each is idempotent, and a fact that comes late or out of order changes nothing it should not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import structlog
from loopwright_common import telemetry
from loopwright_common.bus import Received, Timer
from loopwright_common.clock import Clock
from loopwright_common.contracts.changes import (
    Change,
    ChangeClosed,
    ChangeFailed,
    ChangeMerged,
    ChangeProgress,
    CommandRefused,
)
from loopwright_common.contracts.configuration import ProjectConfig
from loopwright_common.contracts.investigations import Cost, Investigation, InvestigationStarted, InvestigationVerdict
from loopwright_common.contracts.measurements import Measurement, MeasurementStarted
from loopwright_common.contracts.reports import GroupUpdated, ReportsRegrouped, ReportState
from loopwright_common.contracts.signals import Deploy, Exposure, SignalKind
from loopwright_common.errors import Permanent, Retryable
from loopwright_common.metrics import observe_stage

from loopwright_gateway import life, metrics
from loopwright_gateway.domain import FOLLOWS, IllegalTransition, state_after_investigation
from loopwright_gateway.life import POLICY
from loopwright_gateway.ports import ProjectOf, Store, Unit
from loopwright_gateway.records import ChangeRecord, FirstDecision, Report, SeenSignal
from loopwright_gateway.regrouping import SERVICES_MAX, Regrouping, reopen_if_emptied, resolve, routes, wake

log = structlog.get_logger()

# Signals counted in one transaction: a fact may tell of hundreds, and a database that is written to for seconds answers nobody.
SIGNALS_AT_ONCE = 500


class Facts:
    """All handlers of facts. ``project_of`` gives a project's configuration by name."""

    def __init__(self, store: Store, project_of: ProjectOf, clock: Clock) -> None:
        self._store = store
        self._project_of = project_of
        self._clock = clock
        self._regrouping = Regrouping(store, project_of, clock)

    def _project(self, name: str) -> ProjectConfig:
        return self._project_of(name) or ProjectConfig(name=name)

    # Grouping

    async def grouped(self, batch: Sequence[Received[GroupUpdated]]) -> None:
        """Counts each signal once on its report, opens reports, and makes those ready that are."""
        apart = [(fact, message.envelope.traceparent) for message in batch for fact in message.payload.apart()]
        for start in range(0, len(apart), SIGNALS_AT_ONCE):
            await self._count(apart[start : start + SIGNALS_AT_ONCE])

    async def _count(self, facts_and_traces: Sequence[tuple[GroupUpdated, str]]) -> None:
        now = self._clock.now()
        async with self._store.transaction() as unit:
            new = await unit.unseen([fact.signal.id for fact, _ in facts_and_traces])
            by_report: dict[str, list[GroupUpdated]] = defaultdict(list)
            traces: dict[str, list[str]] = defaultdict(list)
            told_late = await routes(unit, [fact for fact, _ in facts_and_traces if fact.signal.id in new])
            for fact, trace in facts_and_traces:
                if fact.signal.id in new:
                    new.discard(fact.signal.id)  # the same signal twice in one batch is one signal
                    report_id, _ = told_late.get(fact.signal.id, (fact.report_id, ()))
                    by_report[report_id].append(fact)
                    traces[report_id].append(trace)
            for report_id, facts in by_report.items():
                # The newest signal is the one that made the report ready, if anything did: what follows goes on in its trace.
                *others, newest = traces[report_id]
                with telemetry.part("take signals", newest, others, loopwright__report__id=report_id):
                    await self._take(unit, report_id, facts, now)
            counted = [fact for facts in by_report.values() for fact in facts]
            await unit.keep_first_decisions(
                [FirstDecision(fact.project, fact.report_id, fact.signal, fact.decision, fact.decided_at) for fact in counted]
            )
            await unit.note_moves({signal_id: moves for signal_id, (_, moves) in told_late.items()})

    async def _take(self, unit: Unit, report_id: str, facts: list[GroupUpdated], now: datetime) -> None:
        report = await resolve(unit, report_id) or await self._open(unit, report_id, facts[0], now)
        seen: list[SeenSignal] = []
        counts: dict[tuple[datetime, str, str], int] = defaultdict(int)
        for fact in facts:
            signal = fact.signal
            counted = signal.kind is not SignalKind.MEASUREMENT
            minute = signal.occurred_at.replace(second=0, microsecond=0)
            seen.append(
                SeenSignal(
                    signal.id,
                    report.id,
                    minute,
                    signal.release,
                    signal.environment,
                    signal.kind.value,
                    signal.service,
                    signal.weight,
                    signal.actor,
                    signal.backfill,
                    counted,
                    fact.decision.fingerprint,
                    fact.report_id,
                    signal.occurred_at,
                )
            )
            tally(report, seen[-1], signal.occurred_at)
            if counted:
                counts[minute, signal.release, signal.environment] += 1
            else:
                await life.note(unit, report, "verdict_signal", "service:measure", signal.title, now, f"signal:{signal.id}")
            await unit.keep_example(report.id, signal, fact.decision)
        await unit.remember(seen, now)
        await unit.count(report.id, counts)
        report.people_count += await unit.add_actors(report.id, {item.actor for item in seen if item.actor and item.counted})
        report.updated_at = now
        await unit.save_report(report)
        await life.changed(unit, report, now)
        await life.consider_promotion(unit, report, self._project(report.project), now)
        await self._consider_waking(unit, report, now)

    async def _open(self, unit: Unit, report_id: str, fact: GroupUpdated, now: datetime) -> Report:
        signal = fact.signal
        report = Report(
            id=report_id, project=fact.project, title=signal.title, state=ReportState.GATHERING, first_seen=signal.occurred_at,
            last_seen=signal.occurred_at, opened_at=now, updated_at=now,
            recurrence_of=fact.recurrence_of if fact.report_id == report_id else None,
        )  # fmt: skip
        reason = fact.decision.reason
        await life.transition(unit, report, ReportState.GATHERING, "service:cluster", reason, now, first=True)
        if report.recurrence_of and (earlier := await unit.report(report.recurrence_of)) is not None:
            await life.note(
                unit, earlier, "recurred", "service:cluster", f"It came back: report {report_id}", now, f"recurrence:{report_id}"
            )
        return report

    async def _consider_waking(self, unit: Unit, report: Report, now: datetime) -> None:
        """A snooze until N more signals ends with them, and what was closed for having no signals with one that was still on its way."""
        await reopen_if_emptied(unit, report, self._project(report.project), "a signal of it came after all", now)
        if report.state is ReportState.SNOOZED and report.snooze_signals is not None:
            came = report.signal_count - (report.snoozed_at_count or 0)
            if came >= report.snooze_signals:
                await wake(unit, report, self._project(report.project), f"{came} more signals came", now)

    async def regrouped(self, message: Received[ReportsRegrouped]) -> None:
        """Carries out a person's word on the grouping."""
        await self._regrouping.regrouped(message)

    # Exposure and deploys

    async def exposed(self, batch: Sequence[Received[Exposure]]) -> None:
        async with self._store.transaction() as unit:
            await unit.add_exposure([message.payload for message in batch], self._clock.now())

    async def deployed(self, message: Received[Deploy]) -> None:
        deploy = message.payload
        async with self._store.transaction() as unit:
            if await unit.add_deploy(deploy):
                body = {"id": deploy.id, "service": deploy.service, "release": deploy.release}
                await unit.add_event("deploy.recorded", deploy.project, body, self._clock.now())

    # Investigations

    async def investigating(self, message: Received[InvestigationStarted]) -> None:
        fact = message.payload
        async with self._store.transaction() as unit:
            report = await unit.report(fact.report_id)
            if report is not None and report.state is ReportState.READY and report.attempt == fact.attempt:
                attempt = f" (attempt {fact.attempt})" if fact.attempt > 1 else ""
                await life.transition(
                    unit,
                    report,
                    ReportState.INVESTIGATING,
                    "service:investigator",
                    f"Looking at the code and the numbers{attempt}",
                    self._clock.now(),
                )

    async def investigated(self, message: Received[Investigation]) -> None:
        """Records the result and acts on the verdict: ask, wait for a person, or start a change as the policy says."""
        found = message.payload
        now = self._clock.now()
        async with self._store.transaction() as unit:
            report = await unit.report(found.report_id)
            if report is None:
                raise Retryable(f"report {found.report_id} is not known yet")
            if not await unit.add_investigation(found):
                return
            await unit.add_usage(f"investigate:{found.id}", found.project, report.id, "investigate", found.cost, now)
            if found.attempt < report.attempt or report.state not in (ReportState.READY, ReportState.INVESTIGATING):
                await life.note(
                    unit, report, "investigated", "service:investigator", f"A result came that is no longer waited for: {found.reason}",
                    now, f"investigated:{found.id}",
                )  # fmt: skip
                return
            report.priority = found.priority
            report.title = found.title or report.title
            state = state_after_investigation(found.verdict)
            reason = found.reason
            if found.verdict is InvestigationVerdict.ALREADY_ADDRESSED:
                reason = f"already addressed: {reason}"
            await life.transition(unit, report, state, "service:investigator", reason, now)
            if state is ReportState.NEEDS_INPUT:
                report.question = found.question
                await unit.save_report(report)
            if state is ReportState.ACTIONABLE:
                await life.consider_change(unit, report, found, self._project(report.project), POLICY, now)

    # Changes

    async def progressed(self, message: Received[ChangeProgress]) -> None:
        fact = message.payload
        async with self._store.transaction() as unit:
            report = await unit.report(fact.report_id)
            if report is not None:
                text = f"{fact.step}: {fact.detail}" if fact.detail else fact.step
                await life.note(unit, report, "progress", "service:pr-agent", text, fact.at, f"progress:{message.envelope.id}")

    async def change_stands(self, message: Received[Change]) -> None:
        """``changes.opened`` and ``changes.updated``: the whole change as it stands."""
        fact = message.payload
        now = self._clock.now()
        async with self._store.transaction() as unit:
            report, change = await self._of_change(unit, fact.report_id, fact.id)
            if change.body is not None and fact.at < change.fact_at:
                return
            if change.body is None and fact.pull_request is not None:
                unit.after_commit(metrics.CHANGES.labels("opened").inc)
                unit.after_commit(lambda: observe_stage("requested_to_opened", change.created_at, now))
            elif fact.at > change.fact_at:  # the same one again is no update
                unit.after_commit(metrics.CHANGES.labels("updated").inc)
            change.body, change.title, change.repository = fact.model_dump_json(), fact.title, fact.repository
            change.fact_at = max(change.fact_at, fact.at)
            if change.state in ("requested", "working", "in_review"):
                change.state = fact.state.value
            change.updated_at = now
            await unit.save_change(change)
            if fact.pull_request is not None:
                await unit.add_usage(f"pull:{change.id}", fact.project, report.id, "pull_request", Cost(), now, pull_requests=1)
            await unit.add_usage(f"change:{change.id}", fact.project, report.id, "change", fact.cost, now)
            if fact.pull_request is not None and report.state is ReportState.CHANGING and await self._is_newest(unit, change):
                number = fact.pull_request.number
                reason = f"Pull request #{number}: {fact.title}. {fact.proof.value.replace('_', ' ')}."
                await life.transition(unit, report, ReportState.IN_REVIEW, "service:pr-agent", reason, now)
            await self._tell(unit, change, now)

    async def change_merged(self, message: Received[ChangeMerged]) -> None:
        fact = message.payload
        async with self._store.transaction() as unit:
            report, change = await self._of_change(unit, fact.report_id, fact.change_id)
            if change.state == "merged":
                return
            change.state, change.merge_commit, change.closed_by = "merged", fact.merge_commit, fact.merged_by
            unit.after_commit(metrics.CHANGES.labels("merged").inc)
            await self._settle(unit, change, fact.merged_at)
            reason = f"Merged as {fact.merge_commit[:12]}"
            await self._follow(unit, report, change, ReportState.MERGED, fact.merged_by, reason, f"merged:{change.id}")
            # Measure's facts come through other consumers: what overtook the merge is followed now.
            started, completed = await unit.measurement_of(change.id)
            if started is not None:
                await self._follow_start(unit, report, change, started)
            if completed is not None:
                await self._follow_verdict(unit, report, change, completed)

    async def change_closed(self, message: Received[ChangeClosed]) -> None:
        fact = message.payload
        async with self._store.transaction() as unit:
            report, change = await self._of_change(unit, fact.report_id, fact.change_id)
            if change.state in ("closed", "merged"):
                return
            change.state, change.closed_by, change.failure = "closed", fact.closed_by, fact.reason
            unit.after_commit(metrics.CHANGES.labels("closed").inc)
            await self._settle(unit, change, fact.at)
            if report.state in (ReportState.IN_REVIEW, ReportState.CHANGING) and await self._is_newest(unit, change):
                reason = f"The change was declined: {fact.reason}" if fact.reason else "The change was declined"
                await life.transition(unit, report, ReportState.NEEDS_INPUT, fact.closed_by, reason, self._clock.now())
                report.question = "The change was declined. What should be done instead?"
                await unit.save_report(report)

    async def change_failed(self, message: Received[ChangeFailed]) -> None:
        fact = message.payload
        async with self._store.transaction() as unit:
            report, change = await self._of_change(unit, fact.report_id, fact.change_id)
            if change.state in ("failed", "merged", "closed"):
                return
            change.state, change.failure = "failed", fact.reason
            unit.after_commit(metrics.CHANGES.labels("failed").inc)
            await self._settle(unit, change, fact.at)
            await unit.add_usage(f"change:{change.id}", fact.project, report.id, "change", fact.cost, self._clock.now())
            if report.state is ReportState.CHANGING and await self._is_newest(unit, change):
                await life.transition(
                    unit, report, ReportState.NEEDS_INPUT, "service:pr-agent", f"No safe change: {fact.reason}", self._clock.now()
                )
                report.question = fact.missing or "No safe change could be made. What should be done?"
                await unit.save_report(report)

    async def command_refused(self, message: Received[CommandRefused]) -> None:
        fact = message.payload
        async with self._store.transaction() as unit:
            report = await unit.report(fact.report_id)
            if report is not None:
                text = f"{fact.action} was not carried out: {fact.reason}"
                cause = f"refused:{fact.command_id}"
                if await life.note(unit, report, "refused", "service:pr-agent", text, self._clock.now(), cause):
                    unit.after_commit(metrics.CHANGES.labels("refused").inc)
                body = {"command_id": fact.command_id, "change_id": fact.change_id, "report_id": fact.report_id, "reason": fact.reason}
                await unit.add_event("command.refused", fact.project, body, self._clock.now())

    async def _of_change(self, unit: Unit, report_id: str, change_id: str) -> tuple[Report, ChangeRecord]:
        report, change = await unit.report(report_id), await unit.change(change_id)
        if report is None or change is None:
            raise Permanent(f"change {change_id} of report {report_id} was never asked for here")
        return report, change

    async def _settle(self, unit: Unit, change: ChangeRecord, at: datetime) -> None:
        change.fact_at = max(change.fact_at, at)
        change.updated_at = self._clock.now()
        await unit.save_change(change)
        await self._tell(unit, change, change.updated_at)

    async def _tell(self, unit: Unit, change: ChangeRecord, at: datetime) -> None:
        await unit.add_event("change.changed", change.project, {"id": change.id, "report_id": change.report_id, "state": change.state}, at)

    async def _is_newest(self, unit: Unit, change: ChangeRecord) -> bool:
        """Whether no later attempt has taken its place: only then does what becomes of it move the report."""
        newest = await unit.latest_change(change.report_id)
        return newest is None or newest.id == change.id

    async def _follow(
        self, unit: Unit, report: Report, change: ChangeRecord, to: ReportState, actor: str, reason: str, cause: str
    ) -> None:  # fmt: skip
        """Moves the report if the loop's order allows it; otherwise the fact is noted, since it happened all the same."""
        now = self._clock.now()
        if to in FOLLOWS[report.state] and await self._is_newest(unit, change):
            await life.transition(unit, report, to, actor, reason, now, cause)
        else:
            await life.note(unit, report, to.value, actor, f"{reason} (the report is {report.state.value})", now, cause)

    # Measurements

    async def measuring(self, message: Received[MeasurementStarted]) -> None:
        fact = message.payload
        async with self._store.transaction() as unit:
            report, change = await self._of_change(unit, fact.report_id, fact.change_id)
            if await unit.start_measurement(fact) and change.state == "merged":
                await self._follow_start(unit, report, change, fact)

    async def measured(self, message: Received[Measurement]) -> None:
        fact = message.payload
        now = self._clock.now()
        async with self._store.transaction() as unit:
            report, change = await self._of_change(unit, fact.report_id, fact.change_id)
            if not await unit.complete_measurement(fact):
                return
            unit.after_commit(metrics.VERDICTS.labels(fact.verdict.value).inc)
            await unit.add_usage(f"measure:{fact.id}", fact.project, report.id, "measure", fact.cost, now)
            if change.state == "merged":  # otherwise the merge is still to come, and follows it then
                await self._follow_verdict(unit, report, change, fact)
            body = {"id": fact.id, "report_id": report.id, "verdict": fact.verdict.value}
            await unit.add_event("measurement.completed", fact.project, body, now)

    async def _follow_start(self, unit: Unit, report: Report, change: ChangeRecord, fact: MeasurementStarted) -> None:
        reason = f"Release {fact.release[:12]} has it; the verdict is due by {fact.ends_at:%Y-%m-%d %H:%M:%S} UTC"
        await self._follow(unit, report, change, ReportState.MEASURING, "service:measure", reason, f"measuring:{fact.id}")

    async def _follow_verdict(self, unit: Unit, report: Report, change: ChangeRecord, fact: Measurement) -> None:
        state = ReportState(fact.verdict.value)
        await self._follow(unit, report, change, state, "service:measure", fact.reason, f"measured:{fact.id}")

    # Timers

    async def timer(self, timer: Timer) -> None:
        """A report's group-wait or snooze is over."""
        now = self._clock.now()
        async with self._store.transaction() as unit:
            report = await unit.report(timer.key)
            if report is None:
                return
            if timer.purpose == "promote":
                await life.consider_promotion(unit, report, self._project(report.project), max(now, timer.due_at))
            elif (
                timer.purpose == "snooze"
                and report.state is ReportState.SNOOZED
                and report.snoozed_until
                and report.snoozed_until <= max(now, timer.due_at)
            ):
                try:
                    await wake(unit, report, self._project(report.project), "the snooze is over", now)
                except IllegalTransition as error:
                    log.info("snooze_not_ended", report_id=report.id, reason=str(error))


def tally(report: Report, signal: SeenSignal, occurred_at: datetime) -> None:
    """Adds a signal to a report's totals."""
    report.kinds = {**report.kinds, signal.kind: report.kinds.get(signal.kind, 0) + 1}
    if signal.service and signal.service not in report.services:
        report.services = sorted([*report.services, signal.service])[:SERVICES_MAX]
    if not signal.counted:
        return
    if report.signal_count == 0:  # a verdict may have opened it, and is no occurrence
        report.first_seen = report.last_seen = occurred_at
    report.signal_count += 1
    report.weight += signal.weight
    report.live_count += 0 if signal.backfill else 1
    if signal.release:
        report.releases = {**report.releases, signal.release: report.releases.get(signal.release, 0) + 1}
    report.first_seen = min(report.first_seen, occurred_at)
    report.last_seen = max(report.last_seen, occurred_at)


def handlers(facts: Facts) -> dict[str, Any]:
    """Subject pattern -> handler of single messages."""
    from loopwright_common.contracts import subjects as s

    return {
        s.GROUPS_REGROUPED.pattern: facts.regrouped,
        s.DEPLOYS.pattern: facts.deployed,
        s.INVESTIGATIONS_STARTED.pattern: facts.investigating,
        s.INVESTIGATIONS_COMPLETED.pattern: facts.investigated,
        s.CHANGES_PROGRESSED.pattern: facts.progressed,
        s.CHANGES_OPENED.pattern: facts.change_stands,
        s.CHANGES_UPDATED.pattern: facts.change_stands,
        s.CHANGES_MERGED.pattern: facts.change_merged,
        s.CHANGES_CLOSED.pattern: facts.change_closed,
        s.CHANGES_FAILED.pattern: facts.change_failed,
        s.CHANGES_REFUSED.pattern: facts.command_refused,
        s.MEASUREMENTS_STARTED.pattern: facts.measuring,
        s.MEASUREMENTS_COMPLETED.pattern: facts.measured,
    }
