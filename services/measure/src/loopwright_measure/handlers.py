"""Load, decide, store, publish. Every effect is named by its cause, so a message that comes twice changes nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import structlog
from loopwright_common import telemetry
from loopwright_common.bus import Bus, Conflict, Outgoing, Received, Timer
from loopwright_common.clock import Clock
from loopwright_common.contracts.changes import ChangeMerged
from loopwright_common.contracts.configuration import ProjectConfig
from loopwright_common.contracts.measurements import Measurement, Verdict
from loopwright_common.contracts.signals import Deploy
from loopwright_common.contracts.subjects import MEASUREMENTS_COMPLETED, MEASUREMENTS_STARTED, SIGNALS
from loopwright_common.errors import Permanent, Retryable
from loopwright_common.identifiers import derived_id
from loopwright_common.metrics import observe_stage
from loopwright_common.projects import Projects
from prometheus_client import Gauge

from loopwright_measure import domain
from loopwright_measure.domain import Pending
from loopwright_measure.ports import History, Kept, PendingStore, Rates
from loopwright_measure.verdict import exposure_for_look, judge
from loopwright_measure.windows import question_window, series, split

SERVICE = "measure"
LOOK = "look"  # the purpose of our timers
# A deploy may be told before its commit has reached the forge; after so many tries (with growing delays, minutes) it is noted and left.
UNKNOWN_ATTEMPTS_MAX = 6
ASK_AGAIN = timedelta(seconds=5)  # a restarted gateway is back within seconds; one question each five costs nothing
DONE_KEPT = timedelta(days=30)  # longer than any message that could begin it anew is redelivered

PENDING = Gauge("loopwright_measurements_pending", "Merged changes that wait for their verdict, by phase. Shared by replicas.", ["phase"])
OVERDUE = Gauge(
    "loopwright_measurement_overdue_seconds",
    "How long the verdict that is most overdue should have been there; 0 when none is. Shared by replicas.",
)

log = structlog.get_logger()


class Measuring:
    """The handlers of merges, deploys and timers."""

    def __init__(self, bus: Bus, store: PendingStore, history: History, rates: Rates, projects: Projects, clock: Clock) -> None:
        self._bus = bus
        self._store = store
        self._history = history
        self._rates = rates
        self._projects = projects
        self._clock = clock

    async def resume(self) -> None:
        """Sets the timer of everything pending again: a crash may have come between a record and its timer."""
        await self._store.forget_done(self._clock.now() - DONE_KEPT)
        for kept in await self._store.all():
            if kept.pending.phase != "done":
                await self._schedule(kept.pending)

    async def look_at_pending(self) -> None:
        """Reads what is pending into the gauges of ``/metrics``."""
        try:
            pending = [kept.pending for kept in await self._store.all() if kept.pending.phase != "done"]
        except Retryable as error:
            PENDING.clear()  # an old number would be taken for a true one
            OVERDUE.set(float("nan"))
            log.warning("pending_not_read", error=str(error)[:500])
            return
        for phase in ("waiting", "measuring", "concluded"):
            PENDING.labels(phase).set(sum(each.phase == phase for each in pending))
        now = self._clock.now()
        OVERDUE.set(max((max(0.0, (now - each.deadline).total_seconds()) for each in pending), default=0.0))

    async def merged(self, received: Received[Any]) -> None:
        """A change was merged: wait for the deploy that contains it, which may have been heard already."""
        merged: ChangeMerged = received.payload
        pending = domain.begin(merged)
        if pending is None:
            log.info("measurement_without_metric", change_id=merged.change_id)
            await self._say_unmeasurable(merged)
            return
        kept = await self._store.get(merged.project, merged.change_id)
        if kept is None:
            kept = await self._store.create(pending.model_copy(update={"traceparent": telemetry.traceparent()}))
            log.info("measurement_waits_for_deploy", change_id=merged.change_id, commit=merged.merge_commit)
        if kept.pending.phase == "done":
            return
        await self._schedule(kept.pending)
        for deploy in await self._store.deploys(merged.project):
            kept = await self._consider(kept, deploy, last_try=True)

    async def deployed(self, received: Received[Any]) -> None:
        """A release went live: it may start, extend or end measurements."""
        deploy: Deploy = received.payload
        await self._store.remember_deploy(deploy)
        unknown = ""
        for kept in await self._store.of_project(deploy.project):
            try:
                await self._consider(kept, deploy, last_try=received.attempt >= UNKNOWN_ATTEMPTS_MAX)
            except _NotYet as reason:
                unknown = str(reason)  # the others must not wait for this one
        if unknown:
            raise Retryable(unknown)

    async def due(self, timer: Timer) -> None:
        """It is time to look at a measurement."""
        kept = await self._store.get(str(timer.data["project"]), timer.key)
        if kept is None or kept.pending.phase == "done":
            return
        pending, now = kept.pending, self._clock.now()
        if pending.phase == "concluded":
            await self._publish(kept)
        elif now < pending.next_look_at:
            await self._schedule(pending)  # an older timer: the newer one replaces it
        elif pending.phase == "waiting":
            await self._conclude(kept, domain.no_deploy(pending, now))
        else:
            await self._look_or_wait(kept)

    async def _look_or_wait(self, kept: Kept) -> None:
        """Looks; while nobody answers it waits by timer, since a message that is only retried is given up in the end."""
        try:
            await self._look(kept)
        except Conflict:
            raise
        except Retryable as error:
            at = self._clock.now() + max(error.after or ASK_AGAIN, ASK_AGAIN)
            log.warning("measurement_cannot_look", change_id=kept.pending.change_id, error=str(error), next_look_at=str(at))
            await self._schedule(kept.pending, at)
        except Permanent as error:
            reason = f"The counts could not be had: {error}"
            await self._conclude(kept, domain.unmeasured(kept.pending, reason, self._clock.now()))

    async def _consider(self, kept: Kept, deploy: Deploy, *, last_try: bool) -> Kept:
        pending = kept.pending
        if pending.phase not in ("waiting", "measuring") or not domain.concerns(pending, deploy, self._config(pending.project)):
            return kept
        if pending.deploy is not None and (deploy.id == pending.deploy.id or deploy.deployed_at <= pending.deploy.deployed_at):
            if deploy.id == pending.deploy.id:
                await self._say_started(pending)  # a repeat: a crash may have come before it was said
            return kept
        found = await self._history.contains(pending.repository, deploy, pending.merge_commit)
        if found.answer == "unknown" and not last_try:
            raise _NotYet(f"deploy {deploy.release} of {deploy.service}: {found.reason}")
        if found.answer == "yes" and found.commit is not None:
            return await self._contains(kept, deploy, found.commit)
        if pending.phase == "measuring" and found.answer == "no":
            reason = (
                f"Release {deploy.release[:100]} of {deploy.service}, deployed at {deploy.deployed_at:%Y-%m-%d %H:%M:%S} UTC, does not "
                f"contain the change any more ({found.reason}): it was rolled back before the measurement was complete."
            )
            return await self._conclude(kept, domain.unmeasured(pending, reason, self._clock.now()))
        told = f"{deploy.service} {deploy.release[:80]} at {deploy.deployed_at:%Y-%m-%d %H:%M} UTC: {found.reason}"
        return await self._store.update(kept, domain.note(pending, told[:500]))

    async def _contains(self, kept: Kept, deploy: Deploy, commit: str) -> Kept:
        if kept.pending.phase == "measuring":
            return await self._store.update(kept, domain.also_contains(kept.pending, deploy))
        kept = await self._store.update(kept, domain.start(kept.pending, deploy, commit))
        await self._say_started(kept.pending)
        log.info("measurement_started", change_id=kept.pending.change_id, release=deploy.release, looks_at=str(kept.pending.next_look_at))
        return kept

    async def _say_started(self, pending: Pending) -> None:
        fact = domain.started(pending, self._clock.now())
        with telemetry.part("measurement started", pending.traceparent):
            await self._bus.publish(
                Outgoing(MEASUREMENTS_STARTED, fact, derived_id("started", fact.id), {"project": pending.project}, pending.report_id)
            )
        await self._schedule(pending)

    async def _look(self, kept: Kept) -> None:
        pending, now = kept.pending, self._clock.now()
        start, end = question_window(pending.metric, now)
        answer = await self._rates.counts(pending.project, pending.report_id, pending.metric, start, end)
        sides = split(answer, pending.metric, pending.deployed, now)
        final = domain.is_final(pending, now)
        needed = exposure_for_look(pending.metric, sides, pending.looks)
        exposure = sides.after.count.exposure
        if exposure < needed and not final:
            # Not a look: the counts of signals decide nothing here, only how much the service was used.
            await self._look_later(kept, pending, exposure, needed)
            return
        judgement = judge(pending.metric, sides, looks_before=pending.looks, final=final)
        if judgement.verdict is Verdict.INCONCLUSIVE and not final:
            looked = pending.model_copy(update={"looks": pending.looks + 1})
            await self._look_later(kept, looked, exposure, exposure_for_look(pending.metric, sides, looked.looks))
            return
        measurement = domain.measured(pending, judgement, sides, now)
        await self._conclude(kept, measurement.model_copy(update={"series": series(answer.signals)}))

    async def _look_later(self, kept: Kept, pending: Pending, exposure: float, needed: float) -> None:
        at = domain.look_again_at(pending, self._clock.now(), exposure, needed)
        kept = await self._store.update(kept, pending.model_copy(update={"next_look_at": at}))
        await self._schedule(kept.pending)
        log.info("measurement_needs_more", change_id=pending.change_id, exposure=exposure, needed=needed, next_look_at=str(at))

    async def _conclude(self, kept: Kept, measurement: Measurement) -> Kept:
        """Keeps the verdict first, so that a crash before it is published cannot change it."""
        return await self._publish(await self._store.update(kept, domain.conclude(kept.pending, measurement)))

    async def _publish(self, kept: Kept) -> Kept:
        pending = kept.pending
        assert pending.result is not None
        await self._say(pending.result, pending)
        kept = await self._store.update(kept, domain.finish(pending, self._clock.now()))
        await self._bus.cancel(SERVICE, LOOK, pending.change_id)
        observe_stage("merged_to_verdict", pending.merged_at, self._clock.now())
        log.info("measurement_completed", change_id=pending.change_id, verdict=pending.result.verdict.value, reason=pending.result.reason)
        return kept

    async def _say(self, result: Measurement, pending: Pending) -> None:
        signal = domain.verdict_signal(pending, result)
        tokens = {"project": result.project}
        with telemetry.part("verdict", pending.traceparent, loopwright__verdict=result.verdict.value):
            await self._bus.publish(Outgoing(MEASUREMENTS_COMPLETED, result, derived_id("completed", result.id), tokens, result.report_id))
            await self._bus.publish(Outgoing(SIGNALS, signal, signal.id, tokens | {"source": "measurement"}, result.report_id))

    async def _say_unmeasurable(self, merged: ChangeMerged) -> None:
        """No metric was fixed, so none can be measured: said at once rather than never."""
        stand_in = domain.without_metric(merged)
        await self._say(domain.unmeasured(stand_in, domain.NO_METRIC, merged.merged_at), stand_in)

    async def _schedule(self, pending: Pending, at: datetime | None = None) -> None:
        due_at = at or pending.next_look_at
        with telemetry.continued(pending.traceparent):
            await self._bus.schedule(
                Timer(service=SERVICE, purpose=LOOK, key=pending.change_id, due_at=due_at, data={"project": pending.project})
            )

    def _config(self, project: str) -> ProjectConfig | None:
        published = self._projects.get(project)
        return published.config if published is not None else None


class _NotYet(Retryable):
    """The repository does not know the deployed release yet."""
